"""What a run would be, told without touching a device."""

import dataclasses
import math
from pathlib import Path

import flax.linen as nn
import jax

from langsamp_jax.data.mixture import mixture_report
from langsamp_jax.data.store import Store
from langsamp_jax.huggingface.loading import describe, vocabulary_rows
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.models.langsamp import LangSamp, ModelConfig, init_params
from langsamp_jax.training.loop import Configs
from langsamp_jax.training.run import require_rows_fit, table_rows


def dry_run(data: Path, configs: Configs, init_from: Path | None = None) -> str:
    """The resolved settings, the mixture, the number of parameters and an estimate of memory.

    The estimate counts parameters and gradients in float32, AdamW's two moments, and the
    activations that the backward pass keeps of one part of a batch on one device.
    """
    store = Store(data)
    require_rows_fit(store.path, store.manifest.sequence_length, configs.model)
    train, manifest = configs.train, store.manifest
    pretrained = None if init_from is None else open_pretrained(init_from)
    inventory = table_rows(store, pretrained and pretrained.inventory)
    sizes = manifest.vocabulary.size, len(inventory.languages), len(inventory.scripts)
    model = LangSamp(configs.model, *sizes)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    plan = train.num_steps, train.global_batch_size
    sampler = configs.mixture.sampler(manifest, train.seed, *plan)
    planned = train.num_steps * train.global_batch_size
    settings = [
        f"{config.gin_name}.{name} = {value!r}"
        for config in configs.all()
        for name, value in dataclasses.asdict(config).items()
    ]
    rows = train.global_batch_size // train.accumulation_steps
    activations = rows * activation_bytes(configs.model, manifest.sequence_length)
    per_parameter = 8 + 2 * (4 if configs.optimizer.moment_dtype == "float32" else 2)
    start = "start: random weights"
    if pretrained:
        pretrained.check(configs.model)
        rows = vocabulary_rows(pretrained, store.tokenizer())
        start = describe(pretrained, model, rows, inventory, configs.init)
    return "\n".join(
        [
            *settings,
            "",
            mixture_report(configs.mixture, manifest, sampler, *plan),
            "",
            start,
            f"parameters: {parameters:,}",
            f"vocabulary: {sizes[0]:,}; languages: {sizes[1]}; scripts: {sizes[2]}",
            f"plan: {train.num_steps:,} steps, {planned:,} rows, "
            f"{planned * manifest.sequence_length:,} tokens",
            f"memory: {per_parameter * parameters / 1e9:.2f} GB for parameters, gradients and "
            f"moments; about {activations / 1e9:.2f} GB of activations, divided by the "
            "data-parallel devices",
        ]
    )


def activation_bytes(config: ModelConfig, length: int) -> int:
    """What the backward pass keeps of one row, in bytes, roughly.

    A layer keeps about twelve states of the hidden size, two of the intermediate size and the
    attention weights twice; with remat its matrix products, or only its input.
    """
    item = 2 if config.dtype == "bfloat16" else 4
    per_layer = length * config.hidden_size
    if config.remat == "products":
        per_layer = length * (6 * config.hidden_size + config.intermediate_size)
    if config.remat == "none":
        attention = 2 * config.num_attention_heads * length * length
        per_layer = length * (12 * config.hidden_size + 2 * config.intermediate_size) + attention
    return config.num_hidden_layers * per_layer * item
