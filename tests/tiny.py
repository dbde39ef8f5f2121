"""The tiny model of the tests: one set of sizes, so that what one file compiles serves others."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from langsamp_jax.data.store import Store
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.training.config import TrainConfig

LENGTH, BATCH = 32, 8  # tokens of a row, rows of a step
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_length": LENGTH,
}
MODEL = ModelConfig(**SIZES)
TRAIN = TrainConfig(num_steps=4, global_batch_size=BATCH, eval_rows=1)
VOCABULARY_SIZE, LANGUAGES, SCRIPTS = 300, 5, 3


def tiny_model(config: ModelConfig = MODEL) -> LangSamp:
    """Returns the model, with tables for 5 languages and 3 scripts."""
    return LangSamp(config, VOCABULARY_SIZE, LANGUAGES, SCRIPTS)


def model_of_store(store: Store, config: ModelConfig) -> LangSamp:
    """Returns a model with the vocabulary of a store and a row for each of its codes."""
    inventory = EMPTY.extended(store.manifest.names)
    tables = len(inventory.languages), len(inventory.scripts)
    return LangSamp(config, store.manifest.vocabulary.size, *tables)


def random_params(model: LangSamp, scale: float = 0.3, seed: int = 0) -> Any:
    """Returns parameters from a normal distribution: no bias is 0 and no scale 1."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    return jax.tree.map(lambda leaf: rng.normal(0, scale, leaf.shape).astype("f"), shapes)
