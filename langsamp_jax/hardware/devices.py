"""What accelerators can do, by their makers' data sheets, for MFU and rooflines; the platform.

A device that is not listed is unknown, not guessed: a utilisation of an unknown peak says nothing.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Device:
    """Describes one device as JAX counts them, by its data sheet; practice reaches less.

    ``links`` are the ways out of the device, each of ``link_bandwidth`` in one direction: the
    torus neighbours of a TPU, the one switch (NVLink, else PCIe) of a GPU.
    """

    peak_flops: float  # dense bfloat16 matmuls with float32 accumulation, FLOP/s
    memory_bytes: float
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s, in one direction
    links: int = 1


_GIB = 2.0**30
_A100_40 = Device(312e12, 40 * _GIB, 1.555e12, 300e9)
_A100_80 = Device(312e12, 80 * _GIB, 2.039e12, 300e9)

# By ``jax.Device.device_kind``, in full: a slice of a GPU (MIG) has a longer name and another peak.
# The memory of a TPU is what its compiler lets a program have.
DEVICES = {
    "TPU v4": Device(275e12, 30.75 * _GIB, 1.228e12, 50e9, links=6),
    "TPU v5 lite": Device(197e12, 15.75 * _GIB, 0.819e12, 50e9, links=4),
    "TPU v5": Device(459e12, 95.74 * _GIB, 2.765e12, 100e9, links=6),
    "TPU v6 lite": Device(918e12, 31.25 * _GIB, 1.638e12, 100e9, links=4),
    "TPU7x": Device(1154e12, 94.75 * _GIB, 3.69e12, 100e9, links=6),  # half a chip
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100-PCIE-40GB": _A100_40,
    "NVIDIA A100-SXM4-80GB": _A100_80,
    "NVIDIA A100 80GB PCIe": dataclasses.replace(_A100_80, memory_bandwidth=1.935e12),
    "NVIDIA H100 80GB HBM3": Device(989.4e12, 80 * _GIB, 3.35e12, 450e9),
    "NVIDIA H100 PCIe": Device(756e12, 80 * _GIB, 2.0e12, 64e9),
    "NVIDIA H100 NVL": Device(835e12, 94 * _GIB, 3.9e12, 300e9),
    "NVIDIA GH200 480GB": Device(989.4e12, 96 * _GIB, 4.0e12, 450e9),
    "NVIDIA H200": Device(989.4e12, 141e9, 4.8e12, 450e9),
    "NVIDIA B200": Device(2250e12, 180e9, 8.0e12, 900e9),
    "NVIDIA L4": Device(121e12, 24 * _GIB, 0.3e12, 32e9),
    "NVIDIA L40S": Device(362e12, 48 * _GIB, 0.864e12, 32e9),
    "NVIDIA RTX 6000 Ada Generation": Device(364e12, 48 * _GIB, 0.96e12, 32e9),
    "NVIDIA GeForce RTX 3090": Device(71e12, 24 * _GIB, 0.936e12, 32e9),
    "NVIDIA GeForce RTX 4090": Device(165.2e12, 24 * _GIB, 1.008e12, 32e9),
    "NVIDIA GeForce RTX 5090": Device(209.5e12, 32 * _GIB, 1.792e12, 64e9),
}


def peak_flops(device_kind: str) -> float | None:
    """Returns bfloat16 FLOP/s of one device by JAX's name of its kind; None where it is unknown."""
    device = DEVICES.get(device_kind)
    return None if device is None else device.peak_flops


def platform() -> str:
    """Returns cpu, gpu or tpu: the devices that are compiled for, which need not be attached."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
