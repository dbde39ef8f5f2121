"""The exception that means "the user can fix this", and lines for what others raise."""

import os
import re
import traceback

# Modules that a gin file or a user's own Tasks may import by the path of an earlier version.
MOVED_MODULES = {
    "data_pipelines.mixtures": "data_pipelines.seqio_tasks.registry",
    "data_pipelines.tasks": "data_pipelines.seqio_tasks.tasks",
    "data_pipelines.vocabulary": "data_pipelines.seqio_tasks.vocabulary",
    "langsamp_jax.evaluate": "langsamp_jax.evaluation",
    "langsamp_jax.mixture": "langsamp_jax.data.mixture",
    "langsamp_jax.model": "langsamp_jax.models.langsamp",
    "langsamp_jax.objective": "langsamp_jax.objectives.masked_lm",
    "langsamp_jax.optimizer": "langsamp_jax.training.optimizer",
    "langsamp_jax.sharding": "langsamp_jax.parallel.mesh",
    "langsamp_jax.train": "langsamp_jax.training.loop",
}


class UserError(Exception):
    """A mistake in the input, settled in one line: what is wrong, where, and what to do.

    The command line prints the message alone and exits with 2; everything else that
    escapes is a defect of ours and keeps its traceback.
    """


def out_of_memory(error: Exception) -> str | None:
    """Returns the line for what XLA raises where a device's memory does not do, else None."""
    text = str(error)
    if not re.search("RESOURCE_EXHAUSTED|Out of memory", text):
        return None
    amount = re.search(r"[Uu]sed [\d.]+\w* of [\d.]+\w*|allocat\w+ [\d.]+ ?\w+", text)
    return (
        f"the device is out of memory{f' ({amount.group()})' if amount else ''}: raise "
        "train.accumulation_steps, set model.remat=layer or model.dtype=bfloat16, or spread the "
        "parameters over more devices with mesh.fsdp (with a checkpoint: model.remat and mesh.fsdp "
        "alone); langsamp plan says beforehand what fits"
    )


def bad_jax_variable(error: Exception) -> str | None:
    """Returns the line for a JAX_... variable that JAX does not take as it is imported, else None.

    Not every message of JAX names the variable; the value is then looked for.
    """
    frames = traceback.extract_tb(error.__traceback__)
    in_config = frames and frames[-1].filename.endswith(os.path.join("jax", "_src", "config.py"))
    if not (isinstance(error, ValueError) and in_config):
        return None
    quoted = re.findall(r"""['"]([^'"]*)['"]""", str(error))
    names = [k for k, v in os.environ.items() if k.startswith("JAX_") and v in quoted]
    return f"{' or '.join(names) or 'a JAX_... variable'} in the environment: {error}"


def moved_module(error: Exception) -> str | None:
    """Returns the line for an import of a module by its old path, with the new one, else None."""
    missing = re.search(r"No module named '([^']+)'", str(error))
    if missing is None or missing[1] not in MOVED_MODULES:
        return None
    return f"there is no module {missing[1]} any more: it is now {MOVED_MODULES[missing[1]]}"
