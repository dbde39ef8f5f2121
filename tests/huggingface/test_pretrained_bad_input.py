"""Training from a folder that is damaged, hostile or another model: one line, nothing written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.huggingface.layout import full_model_config
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.languages.inventory import Inventory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Refuse = Callable[..., str]
QUERY = "roberta.encoder.layer.1.attention.self.query.weight"
NORM = "roberta.encoder.layer.0.output.LayerNorm.bias"


@pytest.fixture(scope="module")
def intact(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small XLM-R with the vocabulary of the store, as transformers saves it."""
    config = transformers.XLMRobertaConfig(
        vocab_size=Store(store_path).manifest.vocabulary.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    folder = tmp_path_factory.mktemp("pretrained") / "intact"
    transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(intact: Path, tmp_path: Path) -> Path:
    """A copy of ``intact``, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "model"))


@pytest.fixture
def refused(store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Refuse:
    """The one line with which training from a folder ends; it leaves nothing at --output.

    What goes before it is only what the run says of its start, where the values are read last.
    """
    output = tmp_path / "out" / "run"
    output.parent.mkdir()

    def refused(folder: Path, *options: str) -> str:
        capsys.readouterr()
        call = ["train", "--data", store_path, "--output", output, "--init_from", folder, *options]
        call += ["--gin.train.num_steps=1", "--gin.train.global_batch_size=8"]  # soon over if taken
        status = main([str(argument) for argument in call])
        *start, line = capsys.readouterr().err.splitlines()
        assert status == 2, line
        assert line.startswith("langsamp: "), line
        assert all(said.startswith(("start: ", "  ")) for said in start), start
        assert list(output.parent.iterdir()) == []
        return line

    return refused


def configure(model: Path, **fields: object) -> None:
    """Changes fields of ``config.json``; None takes one away."""
    config = json.loads((model / "config.json").read_text()) | fields
    config = {name: value for name, value in config.items() if value is not None}
    (model / "config.json").write_text(json.dumps(config))


def rewrite(model: Path, **changed: np.ndarray | None) -> None:
    """Changes tensors, named with ``__`` for ``.``; None takes one away."""
    tensors = load_file(model / "model.safetensors")
    tensors |= {name.replace("__", "."): tensor for name, tensor in changed.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, model / "model.safetensors")


def as_bin(model: Path, **options: bool) -> Path:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    file = model / "pytorch_model.bin"
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, file, **options)
    return file


def test_intact_folder_is_taken(intact, store_path, tmp_path, capsys):
    """Without this, everything below could be refused for a reason of its own."""
    call = ["train", "--data", store_path, "--output", tmp_path / "run", "--init_from", intact]
    assert main([*map(str, call), "--dry_run"]) == 0
    assert "model.hidden_size = 32" in capsys.readouterr().out


def test_no_model(refused, model, tmp_path):
    assert "config.json" in refused(tmp_path)
    assert "nowhere" in refused(tmp_path / "nowhere")
    assert "config.json" in refused(model / "config.json")
    (model / "model.safetensors").unlink()
    assert "has no weights" in refused(model)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"model_type": "xlm-roberta"}'])
def test_config_that_is_damaged(refused, model, text):
    (model / "config.json").write_text(text)
    assert str(model / "config.json") in refused(model)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "gpt2", "gpt2"),
        ("model_type", "roberta", "'roberta'"),
        ("model_type", None, "model_type"),
        ("is_decoder", True, "is_decoder"),
        ("add_cross_attention", True, "add_cross_attention"),
        ("tie_word_embeddings", False, "tie_word_embeddings"),
        ("position_embedding_type", "relative_key", "relative_key"),
        ("hidden_act", "relu", "relu"),
        ("hidden_act", "gelu_new", "gelu_new"),
        ("hidden_size", None, "hidden_size"),
        ("vocab_size", None, "vocab_size"),
        ("hidden_size", 64, "word_embeddings.weight"),
        ("hidden_size", "wide", "hidden_size"),
        ("hidden_size", 0, "hidden_size"),
        ("num_attention_heads", 5, "num_attention_heads"),
        ("num_hidden_layers", 3, "roberta.encoder.layer.2."),
        ("num_hidden_layers", 1, "roberta.encoder.layer.1."),
        ("num_hidden_layers", "2", "num_hidden_layers"),
        ("intermediate_size", 96, "intermediate.dense.weight"),
        ("max_position_embeddings", 60, "position_embeddings.weight"),
        ("max_position_embeddings", [66], "max_position_embeddings"),
        ("layer_norm_eps", "small", "layer_norm_eps"),
        ("pad_token_id", "<pad>", "pad_token_id"),
        ("vocab_size", 77, "77"),
        ("vocab_size", "many", "vocab_size"),
    ],
)
def test_config_of_another_model(refused, model, field, value, message):
    configure(model, **{field: value})
    line = refused(model)
    assert message in line and str(model) in line


def test_settings_that_the_folder_contradicts(refused, model):
    assert "model.hidden_size = 64" in refused(model, "--gin.model.hidden_size=64")


@pytest.mark.parametrize("size", [0, 5, 200, -1000, -1])
def test_safetensors_cut_short(refused, model, size):
    """At the length, in the header, and in the values."""
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert str(file) in refused(model)


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,9000000000]}}',
        b'{"x":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}',
        b'{"x":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
    ],
)
def test_safetensors_with_a_wrong_header(refused, model, header):
    file = model / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert str(file) in refused(model)


def test_header_of_a_length_that_no_file_has(refused, model):
    file = model / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    assert str(file) in refused(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [QUERY, "roberta.embeddings.word_embeddings.weight", NORM])
def test_values_that_are_not_finite(refused, model, name, value):
    tensor = load_file(model / "model.safetensors")[name]
    tensor.flat[-1] = value
    rewrite(model, **{name: tensor})
    line = refused(model)
    assert name in line and "finite" in line


def test_tensors_missing_unexpected_and_of_another_shape_are_listed(refused, model):
    rewrite(
        model,
        **{QUERY: None, NORM: None, "roberta.encoder.layer.0.adapter.weight": np.ones(3, "f")},
        lm_head__bias=np.ones(7, "f"),
    )
    line = refused(model)
    for name in (QUERY, NORM, "roberta.encoder.layer.0.adapter.weight", "lm_head.bias"):
        assert name in line
    assert line.index("missing") < line.index(QUERY) < line.index("unexpected")
    assert line.index("unexpected") < line.index("adapter") < line.index("lm_head.bias")
    assert "[7]" in line


def test_many_missing_tensors_are_counted_not_all_listed(refused, model):
    names = [name for name in load_file(model / "model.safetensors") if "encoder" in name]
    rewrite(model, **dict.fromkeys(names))
    line = refused(model)
    assert len(line) < 2000 and "more" in line


def test_values_that_are_whole_numbers(refused, model):
    """A quantised checkpoint: its numbers mean nothing without their scales."""
    tensor = load_file(model / "model.safetensors")[QUERY]
    rewrite(model, **{QUERY: np.ones(tensor.shape, np.int8)})
    assert QUERY in refused(model)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"x": 7}}', "{}"]
)
def test_index_that_is_damaged(refused, model, index):
    (model / "model.safetensors").unlink()
    file = model / "model.safetensors.index.json"
    file.write_text(index)
    assert str(file) in refused(model)


def test_shard_that_is_missing_or_elsewhere(refused, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = model / "model.safetensors.index.json"
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file(tensors, model / first)
    for shard in (second, "../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        index.write_text(
            json.dumps({"weight_map": {**dict.fromkeys(tensors, first), QUERY: shard}})
        )
        line = refused(model)
        assert shard in line and str(index) in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"languages": ["qaa"]}, "lang_type_embeddings.weight"),
        ({"languages": ["qaa", "qab", "qaa"]}, "qaa"),
        ({"languages": "qaa"}, "languages"),
        ({"languages": ["qaa", 7, "qab"]}, "languages"),
        ({"scripts": None}, "lang_type_embeddings.weight"),
        ({"placement": "sideways"}, "sideways"),
        ({"placement": "none"}, "placement"),
    ],
)
def test_tables_whose_rows_are_named_wrongly(refused, model, changed, message):
    """A full export holds the names of the rows in ``config.json``."""
    embeddings = "roberta.embeddings"
    rewrite(
        model,
        **{f"{embeddings}.lang_type_embeddings.weight": np.ones((3, 32), "f")},
        **{f"{embeddings}.script_type_embeddings.weight": np.ones((1, 32), "f")},
    )
    config = json.loads((model / "config.json").read_text())
    inventory = Inventory(("qaa", "qab", "qac"), ("Latn",))
    configure(model, **full_model_config(config, inventory, "output"))
    configure(model, **changed)
    line = refused(model)
    assert message in line and str(model) in line


class Payload:
    """What a hostile ``.bin`` holds: unpickling it runs a function."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_pickle_that_would_run_code_is_refused(refused, model, tmp_path, form):
    marker, alive = tmp_path / "marker", tmp_path / "alive"
    pickle.loads(pickle.dumps(Payload(alive)))
    assert alive.exists()

    (model / "model.safetensors").unlink()
    file = model / "pytorch_model.bin"
    state = {QUERY: torch.ones(2, 2), "payload": Payload(marker)}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    line = refused(model)
    assert str(file) in line and "refused" in line
    assert not marker.exists()


@pytest.mark.parametrize("content", ["half", "nothing", "text", "list"])
def test_bin_that_is_damaged(refused, model, content):
    file = as_bin(model)
    if content == "list":
        torch.save([torch.ones(3)], file)
    else:
        whole = file.read_bytes()
        parts = {"half": whole[: len(whole) // 2], "nothing": b"", "text": b"version https://git"}
        file.write_bytes(parts[content])
    assert str(file) in refused(model)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_of_tensors_is_read(intact, model, store_path, tmp_path, zipped):
    as_bin(model, _use_new_zipfile_serialization=zipped)
    call = ["train", "--data", store_path, "--output", tmp_path / "run", "--init_from", model]
    assert main([*map(str, call), "--dry_run"]) == 0
    found = open_pretrained(model).weights
    expected = load_file(intact / "model.safetensors")
    assert found.shapes.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.read(name), tensor)


def test_bin_with_values_that_are_not_finite(refused, model):
    rewrite(model, **{QUERY: np.full((32, 32), np.nan, "f")})
    as_bin(model)
    assert QUERY in refused(model)


def test_tokenizer_of_another_size(refused, model, shared_data):
    published = shared_data / "tokenizers" / "xlmr" / "sentencepiece.bpe.model"
    shutil.copy(published, model)
    line = refused(model)
    assert "250,002" in line and str(model) in line


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "tokenizer.json", "vocab.txt"])
def test_tokenizer_that_is_damaged(refused, model, name):
    (model / name).write_bytes(b"\x00\x01 no tokenizer")
    assert str(model) in refused(model)


def test_other_vocabulary_than_the_text(refused, model):
    """The folder has no tokenizer, and another number of pieces than the store."""
    words = load_file(model / "model.safetensors")["roberta.embeddings.word_embeddings.weight"]
    configure(model, vocab_size=len(words) + 5)
    rewrite(
        model,
        roberta__embeddings__word_embeddings__weight=np.ones((len(words) + 5, 32), "f"),
        lm_head__bias=np.ones(len(words) + 5, "f"),
    )
    line = refused(model)
    assert f"{len(words) + 5:,}" in line and f"{len(words):,}" in line
