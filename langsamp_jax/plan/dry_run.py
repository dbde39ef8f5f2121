"""What a run would be, told without putting anything on a device."""

import dataclasses
from pathlib import Path

import jax

from langsamp_jax.data.mixture_report import mixture_report
from langsamp_jax.data.store import Store
from langsamp_jax.huggingface.loading import describe, vocabulary_rows
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.models.costs import activation_bytes
from langsamp_jax.training.checkpoint import snapshot_plan
from langsamp_jax.training.config import Configs, rate_warnings
from langsamp_jax.training.run import require_rows_fit
from langsamp_jax.training.setup import Sizes, set_up, table_rows


def dry_run(data: Path, configs: Configs, init_from: Path | None = None) -> str:
    """Returns the resolved settings, the mixture, the number of parameters and the memory.

    The memory is an estimate: parameters, as many gradients, the optimizer's state, and the
    activations that the backward pass keeps of one part of a batch on one device.
    """
    store = Store(data)
    require_rows_fit(store.path, store.manifest.sequence_length, configs.model)
    train, manifest = configs.train, store.manifest
    pretrained = None if init_from is None else open_pretrained(init_from)
    inventory = table_rows(store, pretrained and pretrained.inventory)
    sizes = Sizes.of(store, inventory)
    setup = set_up(configs, sizes, manifest.vocabulary, mesh=None)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(setup.state.params))
    state_bytes = 4 * parameters + sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.state)
    )
    rows = train.global_batch_size // train.accumulation_steps
    activations = rows * activation_bytes(configs.model, manifest.sequence_length)

    steps = train.num_steps, train.global_batch_size
    sampler = configs.mixture.sampler(manifest, train.seed, *steps)
    planned = train.num_steps * train.global_batch_size
    settings = [
        f"{config.gin_name}.{name} = {value!r}"
        for config in configs.all()
        for name, value in dataclasses.asdict(config).items()
    ]
    start = "start: random weights"
    if pretrained:
        pretrained.check(configs.model)
        sources = vocabulary_rows(pretrained, store.tokenizer())
        start = describe(pretrained, setup.objective.model, sources, inventory, configs.init)
        start = "\n".join([start, *rate_warnings(configs.optimizer, init_from)])
    return "\n".join(
        [
            *settings,
            "",
            mixture_report(configs.mixture, manifest, sampler, *steps),
            "",
            start,
            f"parameters: {parameters:,}",
            f"vocabulary: {sizes.vocab_size:,}; languages: {sizes.languages}; "
            f"scripts: {sizes.scripts}",
            f"plan: {train.num_steps:,} steps, {planned:,} rows, "
            f"{planned * manifest.sequence_length:,} tokens",
            f"memory: {state_bytes / 1e9:.2f} GB for parameters, gradients and moments; about "
            f"{activations / 1e9:.2f} GB of activations, divided by the data-parallel devices",
            *snapshot_plan(train, setup.state.params),
        ]
    )
