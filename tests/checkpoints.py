"""Hugging Face folders with random weights, and what their models give, here and in PyTorch."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from data_pipelines.packing.prepare import prepare
from langsamp_jax.data.feed import Batch
from langsamp_jax.data.store import Store
from langsamp_jax.huggingface.loading import load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
from langsamp_jax.languages.inventory import EMPTY, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from langsamp_jax.text.tokenizer import Tokenizer
from langsamp_jax.training.checkpoint import Checkpoints, model_of
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.loop import train
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.run import Run
from langsamp_jax.training.setup import start_run
from tests import tiny
from tests.tiny import LENGTH, TRAIN

SIZES = tiny.SIZES | {"num_hidden_layers": 3}


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Any]:
    """``make_checkpoint(folder, kind, vocab_size, **config)``: a masked LM saved in ``folder``.

    Its weights are large enough that every one of them shows: no bias is 0, no scale 1, and the
    positions that no token takes are no zeros. It has 3 layers of 32 and takes 32 tokens.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    classes = {
        "xlm-roberta": transformers.XLMRobertaForMaskedLM,
        "xlm-roberta-xl": transformers.XLMRobertaXLForMaskedLM,
        "bert": transformers.BertForMaskedLM,
    }

    def make_checkpoint(folder: Path, kind: str, vocab_size: int, **config: Any) -> Any:
        bert = kind == "bert"
        sizes = {
            **{name: size for name, size in SIZES.items() if name != "max_length"},
            "max_position_embeddings": LENGTH if bert else LENGTH + 2,
            "type_vocab_size": 2 if bert else 1,
            "layer_norm_eps": 1e-12 if bert else 1e-5,
        }
        fields = {"vocab_size": vocab_size, **sizes, **config}
        model = classes[kind](classes[kind].config_class(**fields)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
                if "orm.weight" in name:
                    parameter.add_(1)
        model.save_pretrained(folder)
        return model

    return make_checkpoint


@pytest.fixture(scope="session")
def load_strictly(tmp_path_factory: pytest.TempPathFactory):
    """``load_strictly(folder, auto)``: the model, after a check that each tensor has found its
    place and each place a tensor. ``auto`` is ``AutoModelForMaskedLM`` unless said otherwise."""
    transformers = pytest.importorskip("transformers")

    def load_strictly(folder: Path, auto: Any = transformers.AutoModelForMaskedLM) -> Any:
        model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not any(info.values()), info
        return model.eval()

    with pytest.MonkeyPatch.context() as patch:
        # The code of a folder is copied before it is run: not to the user's cache.
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", list(sys.path))
        yield load_strictly


@pytest.fixture(scope="session")
def import_folder() -> Callable[..., tuple[LangSamp, Any]]:
    """``import_folder(folder)``: the model and its parameters, a copy on every device.

    ``tokenizer`` may be an extension of the folder's, ``names`` are language-scripts that need
    rows, and further arguments are fields of ``ModelConfig``.
    """

    def import_folder(
        folder: Path,
        tokenizer: Tokenizer | None = None,
        names: Sequence[str] = (),
        init: InitConfig | None = None,
        **fields: Any,
    ) -> tuple[LangSamp, Any]:
        pretrained = open_pretrained(folder)
        config = ModelConfig(**{"placement": "none", **pretrained.fields, **fields})
        pretrained.check(config)
        rows = tokenizer and vocabulary_rows(pretrained, tokenizer)
        vocab_size = tokenizer.vocab_size if tokenizer else pretrained.vocab_size
        inventory = (pretrained.inventory or EMPTY).extended(names)
        model = LangSamp(config, vocab_size, len(inventory.languages), len(inventory.scripts))
        shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
        everywhere = replicated(make_mesh(MeshConfig()))
        places = jax.tree.map(lambda _: everywhere, shapes)
        return model, load_params(pretrained, model, rows, places, init or InitConfig(), seed=0)

    return import_folder


@pytest.fixture(scope="session")
def padded() -> Callable[..., Batch]:
    """``padded(tokenizer, lines)``: rows of 16 tokens, of language and script 0."""

    def padded(tokenizer: Tokenizer, lines: Sequence[str]) -> Batch:
        ids, lengths = tokenizer.encode(lines)
        tokens = np.full((len(lines), 16), tokenizer.vocabulary.pad_id, np.int32)
        for row, text in zip(tokens, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
            row[: len(text)] = text[:16]
        zeros = np.zeros(len(lines), np.int32)
        return Batch(tokens, np.arange(16) < lengths[:, None], TableIds(zeros, zeros))

    return padded


@pytest.fixture(scope="session")
def wordpiece_store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``corpus`` with one WordPiece piece a character. Not to be written to."""
    folder = tmp_path_factory.mktemp("wordpiece")
    text = "".join(file.read_text("utf-8") for file in sorted(corpus.glob("*.txt")))
    letters = sorted({*text, "A"} - {" ", "\n"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces), "utf-8")
    prepare(corpus, folder / "vocab.txt", folder / "store", LENGTH, 0.1)
    return folder / "store"


@pytest.fixture(scope="session")
def trained_run(store_path: Path, tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Run:
    """4 steps of LangSAMP from a random XLM-R, with checkpoints and validation at 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    make_checkpoint(folder / "start", "xlm-roberta", Store(store_path).manifest.vocabulary.size)
    loop = {"num_steps": 4, "checkpoint_every": 2, "eval_every": 2, "eval_rows": 4}
    configs = Configs(
        TrainConfig(global_batch_size=8, **loop),
        ModelConfig(**SIZES),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
    )
    return train(Store(store_path), folder / "run", configs, folder / "start")


@pytest.fixture(scope="session")
def tiny_configs() -> Callable[..., Configs]:
    """``tiny_configs(**train)``: a run of 8 rows a step that validates on a row a language."""

    def tiny_configs(**fields: Any) -> Configs:
        return Configs(dataclasses.replace(TRAIN, **fields), ModelConfig(**SIZES))

    return tiny_configs


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``make_run(store, **model)``: a run whose checkpoint, of step 3, holds random weights, or
    ``params``."""

    def make_run(store_path: Path, params: Any = None, **fields: Any) -> Run:
        store = Store(store_path)
        configs = Configs(TrainConfig(num_steps=3), ModelConfig(**SIZES, **fields))
        inventory, rng = EMPTY.extended(store.manifest.names), np.random.default_rng(0)
        path = tmp_path_factory.mktemp("random") / "run"
        run = start_run(path, store, inventory, configs.all(), None, started=0.0)
        shapes = nn.unbox(jax.eval_shape(lambda: init_params(model_of(run), jax.random.key(0))))
        random = jax.tree_util.tree_map_with_path(
            lambda key, leaf: rng.normal(
                "scale" in jax.tree_util.keystr(key), 0.2, leaf.shape
            ).astype("f"),
            shapes,
        )
        checkpoints = Checkpoints(run.checkpoints, max_to_keep=1)
        checkpoints.save(3, {"params": params or random}, {}, None)
        checkpoints.close()
        return run

    return make_run


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model: LangSamp, method: Any, params: Any, batch: Batch) -> jax.Array:
    return model.apply({"params": params}, *batch, method=method)


@pytest.fixture(scope="session")
def logits() -> Callable[..., np.ndarray]:
    """``logits(model, params, batch)``: ours, [batch, length, vocabulary]."""
    return lambda model, params, batch: np.asarray(_apply(model, LangSamp.__call__, params, batch))


@pytest.fixture(scope="session")
def stock_logits() -> Callable[..., np.ndarray]:
    """``stock_logits(stock, batch)``: PyTorch's, [batch, length, vocabulary]."""

    def stock_logits(stock: Any, batch: Batch, **inputs: Any) -> np.ndarray:
        return stock(**_inputs(batch), **inputs).logits.detach().numpy()

    return stock_logits


@pytest.fixture(scope="session")
def assert_parity() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """``assert_parity(model, params, stock, batch)``: the states of every layer and the logits
    agree within 1e-4 where there is text. Gives the logits, ours and theirs."""

    def assert_parity(model: LangSamp, params: Any, stock: Any, batch: Batch):
        theirs = stock(**_inputs(batch), output_hidden_states=True)
        states = [state.detach().numpy() for state in theirs.hidden_states]
        found = np.asarray(_apply(model, LangSamp.hidden_states, params, batch))
        assert len(found) == len(states) == model.config.num_hidden_layers + 1
        text = batch.attention_mask
        for ours, state in zip(found, states, strict=True):
            assert np.abs(ours - state)[text].max() < 1e-4
        ours = np.asarray(_apply(model, LangSamp.__call__, params, batch))
        stock_logits = theirs.logits.detach().numpy()
        assert ours.shape == stock_logits.shape
        assert np.abs(ours - stock_logits)[text].max() < 1e-4
        return ours, stock_logits

    return assert_parity


def _inputs(batch: Batch) -> dict[str, Any]:
    import torch

    return {
        "input_ids": torch.tensor(batch.tokens).long(),
        "attention_mask": torch.tensor(batch.attention_mask).long(),
    }
