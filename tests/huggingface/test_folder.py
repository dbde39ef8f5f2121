"""Folders from which no model can be read: each is named for what it is, in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.model import load_model
from langsamp_jax.huggingface.folder import why_no_model
from langsamp_jax.huggingface.pretrained import open_pretrained, read_config
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import load_tokenizer

torch = pytest.importorskip("torch")

POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1115590446\n".encode()
)


@pytest.fixture(scope="module")
def intact(store_path, tmp_path_factory, make_checkpoint) -> Path:
    tokenizer = Store(store_path).tokenizer()
    folder = tmp_path_factory.mktemp("intact") / "model"
    make_checkpoint(folder, "xlm-roberta", tokenizer.vocab_size)
    write_tokenizer(tokenizer, folder, 32)
    return folder


@pytest.fixture
def model(intact, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(intact, tmp_path / "model"))


def refusal(call: Callable, *arguments: object) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def both(path: Path) -> str:
    """What training and evaluation say alike."""
    line = refusal(read_config, path)
    assert refusal(load_model, path) == line
    return line


# Git LFS


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_were_not_fetched(name, model):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(POINTER)
    line = refusal(open_pretrained, model)
    assert line.startswith(f"{model / name} is a Git LFS pointer") and "git lfs pull" in line


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "tokenizer.json"])
def test_a_tokenizer_that_was_not_fetched(name, model, tmp_path):
    (model / "sentencepiece.bpe.model").unlink()
    (model / name).write_bytes(POINTER)
    for call, path in ((load_tokenizer, model / name), (load_model, model)):
        assert f"{model / name} is a Git LFS pointer" in refusal(call, path)


def test_a_corpus_that_was_not_fetched(corpus, tokenizer_file, tmp_path, capsys):
    """Else its three lines were text of that language."""
    copy = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    (copy / "qab_Latn.txt").write_bytes(POINTER)
    call = ["prepare", "--corpus", copy, "--tokenizer", tokenizer_file, "--output", tmp_path / "s"]
    assert main([*map(str, call)]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert f"{copy / 'qab_Latn.txt'} is a Git LFS pointer" in line
    assert not (tmp_path / "s").exists()


# Another place than the model's folder


@pytest.mark.parametrize("has_main", [True, False])
def test_the_outer_folder_of_the_hubs_cache(has_main, intact, tmp_path):
    outer = tmp_path / "models--xlm-roberta-base"
    inner = outer / "snapshots" / "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089"
    shutil.copytree(intact, inner)
    if has_main:
        shutil.copytree(intact, outer / "snapshots" / "0" / "older")
        (outer / "refs").mkdir()
        (outer / "refs" / "main").write_text(inner.name)
    assert both(outer).endswith(f"name {inner}")
    assert load_model(inner).has_head


def test_links_of_the_hubs_cache(intact, tmp_path):
    """A snapshot is links to blobs; where a blob is gone, so is the file."""
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blobs = Path(shutil.copytree(intact, tmp_path / "blobs"))
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert load_model(snapshot).has_head
    (blobs / "model.safetensors").unlink()
    line = refusal(open_pretrained, snapshot)
    assert "model.safetensors links to a file that is gone" in line


def test_a_folder_of_sentence_transformers(model, tmp_path):
    """Of before version 3: the encoder lies in a folder of its own."""
    outer = tmp_path / "outer"
    shutil.copytree(model, outer / "0_Transformer")
    modules = [{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]
    (outer / "modules.json").write_text(json.dumps(modules))
    assert both(outer).endswith(f"name {outer / '0_Transformer'}")
    (model / "modules.json").write_text(json.dumps([{"idx": 0, "path": ""}, modules[1]]))
    assert load_model(model).has_head  # since then it lies beside that file


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter(with_config, model):
    """``transformers`` would add it to the weights of the model that it names."""
    if not with_config:
        (model / "config.json").unlink()
    base = {"base_model_name_or_path": "FacebookAI/xlm-roberta-base", "peft_type": "LORA"}
    (model / "adapter_config.json").write_text(json.dumps(base))
    line = both(model)
    assert "PEFT adapter of FacebookAI/xlm-roberta-base" in line and "merge_and_unload" in line


def test_a_run_is_exported_first(trained_run):
    line = refusal(read_config, trained_run.path)
    assert f"langsamp export --run {trained_run.path}" in line


def test_a_file_in_the_folder(model):
    assert "name its folder" in both(model / "model.safetensors")


@pytest.mark.parametrize("name", ["FacebookAI/xlm-roberta-base", "xlm-roberta-base"])
def test_a_name_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert both(Path(name)).endswith(f"hf download {name} --local-dir xlm-roberta-base")


SEGMENT = st.text("abcXYZ019-._", min_size=1).filter(lambda text: text[0] not in ".")


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.booleans())
def test_what_looks_like_a_name_of_the_hub(parts, absolute):
    path = Path("/" * absolute + "nowhere-" + "/".join(parts))
    line = why_no_model(path)
    assert (line is not None) == (not absolute and len(parts) <= 2)
    assert line is None or f"hf download {path} --local-dir {path.name}" in line


# Weights in another form


@pytest.mark.parametrize(
    "name", ["tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "model.fp16.safetensors"]
)
def test_weights_of_another_library(name, model):
    (model / name).parent.mkdir(exist_ok=True)
    (model / "model.safetensors").rename(model / name)
    line = refusal(open_pretrained, model)
    assert f"{model} has no weights" in line and f"{name} is not read" in line


@pytest.mark.parametrize("kind", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, 8])
def test_quantised_weights(kind, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": kind}))
    assert "its weights are quantised" in refusal(open_pretrained, model)


def test_safetensors_before_bin(model):
    """As ``transformers`` prefers them; the other file is not even opened."""
    (model / "pytorch_model.bin").write_bytes(b"no weights")
    assert open_pretrained(model).has_head


@pytest.mark.parametrize(
    ("total", "present", "missing"),
    [(1, [1], []), (3, [1, 2, 3], []), (2, [1], [2]), (5, [2], [1, 3, 4, 5])],
)
@pytest.mark.parametrize("name", ["model-{:05}-of-{:05}.safetensors"])
def test_shards_without_an_index(name, total, present, missing, model):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    for number in present:
        part = dict(list(tensors.items())[number - 1 :: total])
        save_file(part, model / name.format(number, total))
    if not missing:
        assert open_pretrained(model).weights.shapes.keys() == tensors.keys()
        return
    line = refusal(open_pretrained, model)
    assert all(name.format(number, total) in line for number in missing[:3])
    assert f"{len(missing)} of {total} shards are missing" in line


def test_shards_beside_whole_weights_are_left(model):
    """Those of a download that was begun; ``transformers`` reads the ``.bin``."""
    from safetensors.numpy import load_file

    tensors = load_file(model / "model.safetensors")
    whole = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    torch.save(whole, model / "pytorch_model.bin")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    assert open_pretrained(model).weights.shapes.keys() == tensors.keys()
