"""A trained encoder as a Hugging Face folder: transformers finds in it what we have."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from sentencepiece import sentencepiece_model_pb2

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.text.tokenizer import SentencePieceTokenizer
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.export import export_run
from langsamp_jax.training.run import Run, open_run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
yaml = pytest.importorskip("yaml")


class Case(NamedTuple):
    """A run, its model without vectors, and the folder made of it."""

    run: Run
    store: Path
    model: LangSamp
    params: Any
    folder: Path
    head: str  # in front of the names of the head's tensors


@pytest.fixture(scope="module", params=["trained", "none", "xlm-roberta-xl", "bert"])
def case(request, store_path, wordpiece_store, trained_run, make_run, tmp_path_factory) -> Case:
    kind, store = request.param, store_path
    if kind == "trained":
        run = trained_run
    elif kind == "none":
        run = make_run(store, placement="none")
    else:
        store = wordpiece_store if kind == "bert" else store
        run = make_run(store, architecture=kind)
    folder = tmp_path_factory.mktemp("export") / "model"
    step, params = restore_params(run)
    assert export_run(run, folder) == step
    model = model_of(run)
    model = model.clone(config=dataclasses.replace(model.config, placement="none"))
    params = {name: part for name, part in params.items() if name != "conditioning"}
    return Case(run, store, model, params, folder, "cls." if kind == "bert" else "lm_head.")


@pytest.fixture(scope="module")
def stock(case, load_strictly):
    return load_strictly(case.folder)


def lines_of(corpus: Path, most: int) -> list[str]:
    files = sorted(corpus.glob("*.txt"))
    return [line for file in files for line in file.read_text("utf-8").splitlines()[:most]]


def test_the_same_states_and_logits(case, stock, corpus, padded, assert_parity):
    names = {"bert": "BertForMaskedLM", "xlm-roberta": "XLMRobertaForMaskedLM"}
    kind = case.model.config.architecture
    assert type(stock).__name__ == names.get(kind, "XLMRobertaXLForMaskedLM")
    batch = padded(case.run.tokenizer, [*lines_of(corpus, 1), "a", ""])
    assert len(set(batch.attention_mask.sum(axis=1))) > 2
    ours, _ = assert_parity(case.model, case.params, stock, batch)
    assert ours.std() > 0.1


def test_weights_are_tied_and_nothing_is_padded(case, stock):
    words, decoder = stock.get_input_embeddings().weight, stock.get_output_embeddings()
    assert decoder.weight.data_ptr() == words.data_ptr()
    size = case.run.tokenizer.vocab_size
    assert size % 128 and words.shape[0] == size and decoder.bias.shape == (size,)
    tensors = load_file(case.folder / "model.safetensors")
    assert not any("decoder.weight" in name for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}
    assert not any("lang_type" in name or "script_type" in name for name in tensors)


def test_the_encoder_alone(case, stock, corpus, padded):
    """As transformers loads any masked language model as an encoder: the head is left over."""
    encoder, info = transformers.AutoModel.from_pretrained(
        case.folder, add_pooling_layer=False, output_loading_info=True
    )
    tensors = load_file(case.folder / "model.safetensors")
    head = {name for name in tensors if name.startswith(case.head)}
    assert len(head) == (5 if case.head == "cls." else 6)
    assert set(info.pop("unexpected_keys")) == head
    assert not any(info.values()), info
    batch = padded(case.run.tokenizer, lines_of(corpus, 1))
    inputs = {
        "input_ids": torch.tensor(batch.tokens).long(),
        "attention_mask": torch.tensor(batch.attention_mask).long(),
    }
    alone = encoder.eval()(**inputs).last_hidden_state
    torch.testing.assert_close(alone, stock.base_model(**inputs)[0], atol=0, rtol=0)


def test_tokenizer_gives_our_ids(case, corpus):
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    ours = case.run.tokenizer
    lines = [*lines_of(corpus, 100), "Ａ  b\tc ﬁ ☃", "", " "]
    ids, lengths = ours.encode(lines)
    expected = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert tokenizer(lines)["input_ids"] == expected
    assert len(tokenizer) == ours.vocab_size
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == ours.pieces
    assert tokenizer.mask_token_id == ours.vocabulary.mask_id
    assert tokenizer.pad_token_id == ours.vocabulary.pad_id
    assert tokenizer.model_max_length == case.model.config.max_length


def test_files(case):
    """Weights in safetensors only, and no pickle of any kind; vectors beside them if there are."""
    files = {file.name for file in case.folder.iterdir()}
    suffixes = {Path(name).suffix for name in files}
    assert suffixes <= {".json", ".safetensors", ".model", ".txt", ".md", ".npz"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files
    assert len({file.stat().st_mode for file in case.folder.iterdir()}) == 1  # the same readers
    has_vectors = model_of(case.run).config.placement != "none"
    for name in ("inventory.json", "language_script_vectors.npz"):
        assert (name in files) == has_vectors
    assert ("sentencepiece.bpe.model" in files) == (case.head == "lm_head.")
    assert not any(file.stem.startswith("model.") for file in case.folder.parent.iterdir())


def test_model_card(case):
    text = (case.folder / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    manifest = Store(case.store).manifest
    languages = sorted({name.split("_")[0] for name in manifest.names})
    assert yaml.safe_load(front)["language"] == languages
    steps, rows = (4, 8) if "the weights of start" in body else (3, 1024)
    assert f"- {steps} steps of {rows:,} rows of 32 tokens: {steps * rows * 32:,} tokens" in body
    for name in manifest.names:
        assert f"| {name} | {manifest.counts['train'][name].tokens:,} |" in body
    assert ("random weights" in body) == (rows == 1024)
    assert str(case.run.path.parent) not in text


def test_code_on_the_model_card_runs(case):
    text = (case.folder / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    found = {"DIR": str(case.folder)}
    exec(code, found)
    assert found["states"].shape[2] == 32 and found["states"].isfinite().all()


def test_checkpoint_of_a_step(trained_run, tmp_path, capsys):
    call = ["export", "--run", trained_run.path, "--output"]
    assert main([*map(str, call), str(tmp_path / "2"), "--step", "2"]) == 0
    assert "step 2 of" in capsys.readouterr().out
    written = load_file(tmp_path / "2" / "model.safetensors")
    _, params = restore_params(trained_run, 2)
    np.testing.assert_array_equal(
        written["lm_head.dense.weight"].T, params["head"]["dense"]["kernel"]
    )
    assert main([*map(str, call), str(tmp_path / "3"), "--step", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_runs_are_opened_from_their_folder(case, tmp_path):
    """What is written depends on nothing but the run."""
    export_run(open_run(case.run.path), tmp_path / "again")
    for file in case.folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_config_says_what_the_tokenizer_says(case):
    config = json.loads((case.folder / "config.json").read_text())
    vocabulary = case.run.tokenizer.vocabulary
    assert config["vocab_size"] == vocabulary.size
    assert config["pad_token_id"] == vocabulary.pad_id
    assert config["max_position_embeddings"] == (32 if case.head == "cls." else 34)
    assert config["architectures"][0].endswith("ForMaskedLM")


def test_other_ids_are_refused_before_anything_is_written(trained_run, tmp_path, refused):
    """SentencePiece's option for a space behind each word, which XLM-R's class does not know."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained_run.tokenizer.model)
    proto.trainer_spec.treat_whitespace_as_suffix = True
    tokenizer = SentencePieceTokenizer(proto.SerializeToString())
    run = dataclasses.replace(trained_run, tokenizer=tokenizer)
    message = refused(export_run, run, tmp_path / "model")
    pattern = (
        r"the tokenizer would have other ids in transformers for (\d+) of (\d+) lines, such as"
    )
    differing, lines = map(int, re.match(pattern, message).groups())
    assert lines > differing > lines / 2 and "puts the space behind a word" in message
    assert list(tmp_path.iterdir()) == []
