"""Weights from a Hugging Face folder give what transformers gives, in whatever form they come."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from langsamp_jax.data.store import Store
from langsamp_jax.huggingface import layout
from langsamp_jax.huggingface.loading import describe, is_padded
from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

KINDS = ("xlm-roberta", "xlm-roberta-xl", "bert")


def flat(params: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal(ours: Any, expected: Any) -> None:
    ours, expected = flat(ours), flat(expected)
    assert ours.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)


# Parity


@pytest.fixture(scope="module")
def titles(shared_data: Path) -> list[str]:
    """The first line of the Universal Declaration of Human Rights in one language a script."""
    files = sorted((shared_data / "udhr" / "text").glob("*.txt"))
    by_script = {file.stem.partition("_")[2]: file for file in files}
    lines = (file.read_text("utf-8").splitlines() for file in by_script.values())
    return [next(line for line in text if line.strip()) for text in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_real_text_in_many_scripts(
    kind, titles, shared_data, tmp_path, make_checkpoint, import_folder, padded, assert_parity
):
    names = {"bert": "mbert/vocab.txt"}
    file = shared_data / "tokenizers" / names.get(kind, "xlmr/sentencepiece.bpe.model")
    tokenizer = load_tokenizer(file)
    stock = make_checkpoint(tmp_path, kind, tokenizer.vocab_size)
    shutil.copy(file, tmp_path)
    model, params = import_folder(tmp_path, tokenizer)

    known = 0
    for start in range(0, len(titles) - 7, 8):
        batch = padded(tokenizer, titles[start : start + 8])
        known += sum(tokenizer.vocabulary.unk_id not in row for row in batch.tokens)
        batch.tokens[:, 2] = tokenizer.vocabulary.mask_id
        assert len(set(batch.attention_mask.sum(axis=1))) > 1
        top = [
            torch.tensor(values[:, 2]).topk(5).indices
            for values in assert_parity(model, params, stock, batch)
        ]
        assert top[0].tolist() == top[1].tolist()
    assert start >= 24 and known >= 15  # whole rows without an unknown piece


@pytest.fixture(scope="module")
def tokenizer(store_path: Path) -> Tokenizer:
    return Store(store_path).tokenizer()


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tokenizer, tmp_path_factory, make_checkpoint, import_folder):
    """The kind, the folder, the model in PyTorch, and ours."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    pad = tokenizer.vocabulary.pad_id
    stock = make_checkpoint(folder, request.param, tokenizer.vocab_size, pad_token_id=pad)
    return request.param, folder, stock, *import_folder(folder, tokenizer)


def test_synthetic_text(checkpoint, corpus, tokenizer, padded, assert_parity):
    _, _, stock, model, params = checkpoint
    lines = [file.read_text("utf-8").splitlines()[0] for file in sorted(corpus.glob("*.txt"))]
    batch = padded(tokenizer, [*lines, "a", ""])
    ours, theirs = assert_parity(model, params, stock, batch)
    assert (ours[batch.attention_mask].std(axis=0) > 0.1).all()


# Forms of the same weights


def as_safetensors(tensors: dict[str, Any], folder: Path) -> None:
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    safetensors_torch.save_file(whole, folder / "model.safetensors", {"format": "pt"})


def in_shards(stock: Any, folder: Path) -> None:
    stock.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3


def in_bin(stock: Any, folder: Path) -> None:
    torch.save(stock.state_dict(), folder / "pytorch_model.bin")


def in_bin_of_before_torch_1_6(stock: Any, folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(stock.state_dict(), file, _use_new_zipfile_serialization=False)


def in_shards_of_bin(stock: Any, folder: Path) -> None:
    tensors, where = stock.state_dict(), {}
    for number in range(3):
        shard, names = f"pytorch_model-{number}.bin", list(tensors)[number::3]
        torch.save({name: tensors[name] for name in names}, folder / shard)
        where |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def with_names_of_tensorflow(stock: Any, folder: Path) -> None:
    """As the first BERT checkpoints call the parameters of LayerNorm."""
    new = {"orm.weight": "orm.gamma", "orm.bias": "orm.beta"}
    tensors = stock.state_dict()
    for old, other in new.items():
        tensors = {name.replace(old, other): tensor for name, tensor in tensors.items()}
    assert sum(name.endswith("gamma") for name in tensors) >= 7
    as_safetensors(tensors, folder)


def with_tensors_of_no_use(stock: Any, folder: Path) -> None:
    """A pooler, position ids, BERT's next-sentence head; the tied decoder is there anyway."""
    prefix = stock.base_model_prefix
    more = {
        f"{prefix}.pooler.dense.weight": torch.ones(32, 32),
        f"{prefix}.pooler.dense.bias": torch.ones(32),
        f"{prefix}.embeddings.position_ids": torch.arange(34)[None],
    }
    if prefix == "bert":
        more["cls.seq_relationship.weight"] = torch.ones(2, 32)
    tensors = stock.state_dict()
    assert sum(".decoder." in name for name in tensors) == 2
    as_safetensors({**tensors, **more}, folder)


def in_shards_without_an_index(stock: Any, folder: Path) -> None:
    in_shards(stock, folder)
    (folder / "model.safetensors.index.json").unlink()


def by_save_model(stock: Any, folder: Path) -> None:
    """It keeps one name of each shared tensor, the first by alphabet: XLM-R's decoder."""
    safetensors_torch.save_model(stock, str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    "write",
    [
        by_save_model,
        in_shards,
        in_shards_without_an_index,
        in_bin,
        in_bin_of_before_torch_1_6,
        in_shards_of_bin,
        with_names_of_tensorflow,
        with_tensors_of_no_use,
    ],
)
def test_the_same_weights_in_another_form(checkpoint, write, tmp_path, import_folder):
    _, _, stock, _, params = checkpoint
    stock.config.save_pretrained(tmp_path)
    write(stock, tmp_path)
    assert_equal(import_folder(tmp_path)[1], params)


@pytest.mark.parametrize("drop_words", [True, False])
@pytest.mark.parametrize("drop_bias", [True, False])
def test_either_name_of_a_tied_tensor(checkpoint, drop_words, drop_bias, tmp_path, import_folder):
    """``transformers`` reads the same from all four."""
    kind, _, stock, _, params = checkpoint
    tied = layout.tied_names(kind)
    (decoder, words), (decoder_bias, bias) = tied.items()
    dropped = {words if drop_words else decoder, bias if drop_bias else decoder_bias}
    tensors = stock.state_dict()
    assert dropped < tensors.keys()
    stock.config.save_pretrained(tmp_path)
    as_safetensors({n: t for n, t in tensors.items() if n not in dropped}, tmp_path)
    assert_equal(import_folder(tmp_path)[1], params)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor), name


def test_what_is_not_used_is_said(checkpoint, tmp_path):
    kind, _, stock, model, _ = checkpoint
    stock.config.save_pretrained(tmp_path)
    with_tensors_of_no_use(stock, tmp_path)
    text = describe(open_pretrained(tmp_path), model, None, EMPTY, InitConfig())
    *segment, line = [line for line in text.splitlines() if "not used" in line]
    assert segment == ["  not used: the vector of a second text segment"] * (kind == "bert")
    assert "pooler.dense.weight" in line and "position_ids" not in line
    assert ("cls.seq_relationship.weight" in line) == (kind == "bert")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_as_it_is(checkpoint, dtype, tmp_path, import_folder):
    _, _, stock, _, params = checkpoint
    half = copy.deepcopy(stock).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path / "half")
    half.float().save_pretrained(tmp_path / "rounded")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert dtype in (config.get("dtype"), config.get("torch_dtype"))

    ours = import_folder(tmp_path / "half")[1]
    assert_equal(ours, import_folder(tmp_path / "rounded")[1])
    assert {leaf.dtype for leaf in flat(ours).values()} == {np.dtype("float32")}
    change = np.abs(flat(ours)["word_embeddings"] - flat(params)["word_embeddings"]).max()
    assert 1e-5 < change < 1e-2


def test_plain_encoder(checkpoint, tmp_path, import_folder):
    """The encoder is the checkpoint's; the head is random, and that is said."""
    _, _, stock, model, params = checkpoint
    stock.base_model.save_pretrained(tmp_path)
    ours, expected = flat(import_folder(tmp_path)[1]), flat(params)
    assert ours.keys() == expected.keys()
    head = {name for name in expected if name.startswith("head/") or name == "decoder_bias"}
    assert len(head) == 5
    for name in expected.keys() - head:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)
    assert 0.015 < ours["head/dense/kernel"].std() < 0.025
    assert (ours["head/layer_norm/scale"] == 1).all()
    assert not ours["head/dense/bias"].any() and not ours["decoder_bias"].any()

    for folder, said in ((tmp_path, True), (checkpoint[1], False)):
        text = describe(open_pretrained(folder), model, None, EMPTY, InitConfig())
        assert ("plain encoder" in text and "head starts at random" in text) == said


@pytest.mark.parametrize("kind", ["xlm-roberta", "xlm-roberta-xl"])
def test_embeddings_behind_the_last_piece(
    kind, tokenizer, corpus, tmp_path, make_checkpoint, import_folder, padded, logits
):
    """As ``pad_to_multiple_of`` leaves them, and the published XL and XXL have them."""
    size, lines = tokenizer.vocab_size, (corpus / "qac_Latn.txt").read_text().splitlines()[:4]
    rows = -(-size // 64) * 64
    assert rows > size
    stock = make_checkpoint(tmp_path, kind, rows)
    write_tokenizer(tokenizer, tmp_path, 32)
    model, params = import_folder(tmp_path, tokenizer)
    batch = padded(tokenizer, lines)
    tokens, mask = (torch.tensor(np.asarray(field)).long() for field in batch[:2])
    theirs = stock(tokens, attention_mask=mask).logits.detach().numpy()[..., :size]
    ours, valid = logits(model, params, batch), np.asarray(batch.attention_mask)
    np.testing.assert_allclose(ours[valid], theirs[valid], atol=1e-4)
    text = describe(open_pretrained(tmp_path), model, None, EMPTY, InitConfig())
    assert f"not used: {rows - size} embeddings" in text


@hypothesis.given(pieces=st.integers(1, 500_000), power=st.integers(3, 10))
def test_a_vocabulary_is_padded_to_a_multiple(pieces, power):
    multiple = 2**power
    rows = -(-pieces // multiple) * multiple
    assert rows == pieces or is_padded(pieces, rows)
    assert not is_padded(pieces, pieces) and not is_padded(rows + 1, rows)
    assert not is_padded(pieces, rows + 2048)  # the tokenizer of another model
    assert not is_padded(pieces, rows + 1)


def test_published_vocabularies():
    assert is_padded(250_002, 250_880)  # XLM-R XL and XXL
    assert not is_padded(119_547, 250_002)  # multilingual BERT's tokenizer, XLM-R's weights
    assert not is_padded(250_002, 401_145)  # XLM-R's tokenizer, Glot500-m's weights
    assert not is_padded(250_002, 250_037)


def test_chunks_make_the_same_whole(checkpoint, tokenizer, import_folder, monkeypatch):
    _, folder, _, _, params = checkpoint
    monkeypatch.setattr("langsamp_jax.huggingface.loading._CHUNK_BYTES", 3000)
    assert_equal(import_folder(folder, tokenizer)[1], params)
