"""Devices by the name of a machine: TPU slices through their compiler, which needs no TPU."""

import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from langsamp_jax.errors import UserError
from langsamp_jax.hardware.environment import open_devices

_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
KNOWN = {"v5e": _PLANE, "v6e": _PLANE, "v4": _CUBE, "v5p": _CUBE, "tpu7x": _CUBE}


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Returns the devices of ``v5e:4x4`` and the like; of ``cpu:8``, simulated; or of ``here``.

    Devices of a TPU topology can be compiled for, not used. To be called before jax has looked
    for devices.

    Raises:
      UserError: a name that neither we nor the TPU's compiler know, or no compiler.
    """
    if name == "here":
        return open_devices()
    jax.config.update("jax_platforms", "cpu")  # planning takes no device away from a training
    if simulated := re.fullmatch(r"cpu:([1-9]\d*)", name):
        jax.config.update("jax_num_cpu_devices", int(simulated[1]))
        return open_devices()
    generation, _, shape = name.partition(":")
    if generation not in KNOWN or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(_unknown(name))
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}  # a device a chip
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return compile_only_devices(name, **options)
    except RuntimeError as error:
        if "TPU support not installed" in str(error):
            raise UserError(
                f"compiling for {name} needs libtpu, also without a TPU: "
                "pip install 'langsamp-jax[tpu]'"
            ) from None
        raise UserError(_unknown(name)) from None


def compile_only_devices(name: str, **options: object) -> Sequence[jax.Device]:
    """Returns the devices of a TPU topology as libtpu knows it, whatever this machine has or does.

    libtpu takes a lock of the whole machine when it is loaded, for the TPU that it is about to
    use, and is refused where a training, a test or a plan has it. A compiler uses no TPU: it
    neither needs the lock nor may it take that of the training which starts next. To be called
    before libtpu is loaded.
    """
    # Set over what the environment says, which is meant for programs that use the TPU.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # The metadata server of a cloud does not concern us either.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # it asks, and does not care
    # A program for devices that are not there can be put into the cache, not taken out.
    jax.config.update("jax_enable_compilation_cache", False)
    return topologies.get_topology_desc(name, platform="tpu", **options).devices


def _unknown(name: str) -> str:
    known = "; ".join(f"{generation}:{', '.join(shapes)}" for generation, shapes in KNOWN.items())
    return (
        f"--topology {name} is not known; there are {known}; cpu:N, simulated devices; and here, "
        "the devices of this machine (a GPU can be compiled for only where there is one)"
    )
