"""The environment: what of it would change results is refused, the rest is written down.

The command line and gin say all that a run is. JAX and XLA also read variables of the environment.
Those under which the same command draws other numbers, computes in other types or fails are
refused; those that change rounding at most, the versions and the device are recorded with what they
made. ``random_key`` names its generator, so that JAX's default for it does not matter.
"""

import functools
import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from langsamp_jax.errors import UserError

# By JAX's name of an option: the values under which results are those of every other run.
_ALLOWED = {
    "jax_disable_jit": (False,),
    "jax_enable_x64": (False,),
    "jax_no_execution": (False,),
    "jax_no_tracing": (False,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_random_seed_offset": (0,),
    "jax_threefry_partitionable": (True,),
    "jax_transfer_guard": (None, "allow", "log"),
}
_PACKAGES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "tensorstore"),
    *("sentencepiece", "tokenizers", "langsamp-jax"),
)
_FLAGS = re.compile("JAX_|XLA_FLAGS|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE")
# Of the JAX_... variables: who this process is and where files lie; they change no result.
_PLACES = re.compile("JAX_(COMPILATION|PERSISTENT|COORDINATOR|NUM_PROC|PLATFORMS|PROCESS|LOCAL)")


def random_key(seed: int) -> jax.Array:
    """Returns the key of a seed, for the generator that all random numbers here come from."""
    return jax.random.key(seed, impl="threefry2x32")


def open_devices() -> Sequence[jax.Device]:
    """Returns the devices of this run. It is asked before any of them is used.

    Raises:
      UserError: there are none as the environment wants them, or it would change results.
    """
    _require_allowed()
    _require_xla_flags(os.environ.get("XLA_FLAGS", ""))
    if not jax.config.jax_platforms and _cpu_alone():
        jax.config.update("jax_platforms", "cpu")  # libtpu would print a page of what it misses
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda where there is no GPU
        reason = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        wanted = jax.config.jax_platforms or "any platform"
        raise UserError(
            f"JAX has no device of {wanted} here ({reason or 'there is none'}): free it, or set "
            "JAX_PLATFORMS to another one; cpu is always there"
        ) from error


def _require_allowed() -> None:
    """Raises UserError where an option of JAX or XLA would change results."""
    for name, allowed in _ALLOWED.items():
        value = jax.config.values.get(name, allowed[0])  # not every version has all of them
        if (value := getattr(value, "value", value)) not in allowed:
            raise UserError(
                f"{name.upper()} = {value}: with it the same command would not give the same "
                "results; leave it unset"
            )
    flags = os.environ.get("XLA_FLAGS", "")
    if re.search(r"--xla_cpu_enable_fast_math(?!=(false|0))\b", flags, re.IGNORECASE):
        raise UserError(
            "XLA_FLAGS has --xla_cpu_enable_fast_math: with it the same command would not give "
            "the same results; leave it out"
        )


def environment() -> dict[str, Any]:
    """Returns what results may depend on beside the settings: versions, device, variables."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    flags = {k: v for k, v in sorted(os.environ.items()) if _FLAGS.match(k)}
    device = jax.devices()[0]
    return {
        "versions": versions,
        "platform": device.platform,
        "device": device.device_kind,
        "flags": {name: value for name, value in flags.items() if not _PLACES.match(name)},
    }


def describe_changes(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns ``jax 0.9.1, now 0.10.2`` for each thing in which two environments differ."""
    changes = []
    for kind in ("versions", "flags"):
        for name in sorted({*was[kind], *now[kind]}):
            before, after = (side[kind].get(name, "none") for side in (was, now))
            if before != after:
                changes.append(f"{name} {before}, now {after}")
    if was["device"] != now["device"]:
        changes.append(f"device {was['device']}, now {now['device']}")
    return changes


@functools.cache
def _require_xla_flags(flags: str) -> None:
    """Raises UserError where XLA does not know its flags; it would end this process, with 1.

    A process that only reads them is asked, which takes a third of a second.
    """
    if not flags.strip():
        return
    code = "from jaxlib import _jax; _jax.CompileOptions()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if re.match(r"[EF]\d{4} ", line)]
    if done.returncode != 0 and lines:
        reason = lines[0].partition("] ")[2]
        raise UserError(f"XLA_FLAGS = {flags}: {reason}")


def _cpu_alone() -> bool:
    """Returns whether libtpu is all that JAX could look for, and there is no TPU to be seen."""
    others = importlib.metadata.entry_points(group="jax_plugins")
    if others or importlib.util.find_spec("jax_plugins") or "JAX_FORCE_TPU_INIT" in os.environ:
        return False
    # JAX has no public way of asking for the chips on the bus without loading libtpu.
    from jax._src.hardware_utils import num_available_tpu_chips_and_device_id

    chips = num_available_tpu_chips_and_device_id()[0]
    return not chips and not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*")
