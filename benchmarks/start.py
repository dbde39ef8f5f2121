"""Writes what all contenders start from: weights, and batches with the masks that ours draws.

The weights are ours at step 0, exported as a Hugging Face folder; the two tables lie beside it.
"""

import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from step_jax import SEED, parts
from workload import BATCHES, TABLES, WEIGHTS, Workload, random_batches

from langsamp_jax.huggingface.export import save_weights, state_dict
from langsamp_jax.huggingface.layout import stock_config
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masking import ObjectiveConfig, mask_rows
from langsamp_jax.training.step import make_initialise


def write(workload: Workload, folder: Path) -> None:
    model, optimizer, vocabulary = parts(workload, {})
    params = nn.unbox(jax.jit(make_initialise(model, optimizer, SEED))().params)
    np.savez(folder / TABLES, **params["conditioning"])
    stock = ModelConfig(**workload.architecture, placement="none")
    (folder / WEIGHTS).mkdir()
    (folder / WEIGHTS / "config.json").write_text(json.dumps(stock_config(stock, vocabulary)))
    save_weights(folder / WEIGHTS, state_dict(stock, params, vocabulary))

    @jax.jit
    def mask(step: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        keys, _ = step_keys(SEED, step, len(tokens))
        full = np.ones(tokens.shape, bool)
        masked = mask_rows(keys, tokens, full, vocabulary, ObjectiveConfig())
        return {name: getattr(masked, name) for name in ("inputs", "positions", "targets")}

    batches = random_batches(workload)
    masks = [mask(step, tokens) for step, tokens in enumerate(batches["tokens"])]
    stacked = {name: np.stack([masked[name] for masked in masks]) for name in masks[0]}
    np.savez(folder / BATCHES, **batches, **stacked)


if __name__ == "__main__":
    write(Workload(**json.loads(sys.argv[1])), Path(sys.argv[2]))
