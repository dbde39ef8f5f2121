"""The record of a plan, for people."""

from typing import Any

from langsamp_jax.io.progress import table
from langsamp_jax.plan.roofline import ACHIEVABLE


def show(record: dict[str, Any]) -> str:
    """Returns the text of a record: memory, network, and the estimate of the time."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in record["mesh"].items())
    lines = [
        f"{record['devices']} x {record['device_kind']}: {mesh}",
        f"{record['parameters'] / 1e6:,.1f} M parameters; {record['global_batch_size']:,} rows of "
        f"{record['sequence_length']} tokens a step: {record['rows_per_device']} a device at a "
        f"time, {record['accumulation_steps']} times",
        "",
        _show_memory(record),
    ]
    if "network" in record:
        lines += ["", _show_network(record["network"])]
    if "estimate" in record:
        lines += ["", _show_estimate(record)]
    return "\n".join(lines)


def _show_memory(record: dict[str, Any]) -> str:
    memory = record["memory"]
    rows = [{"what": name, "gib": size / 2**30} for name, size in memory.items()]
    lines = [table(rows, {"what": "memory of a device", "gib": "GiB:.2f"}), ""]
    if record["fits"]:
        return "\n".join([*lines, "it fits" if "capacity" in memory else "capacity unknown"])
    changes = [{**change, "gib": change["saves"] / 2**30} for change in record["advice"]]
    lines += ["it does not fit; what would help, each by itself:"]
    return "\n".join([*lines, table(changes, {"change": "change", "gib": "saves about, GiB:.2f"})])


def _show_network(network: dict[str, Any]) -> str:
    headers = {"kind": "a device sends", "axes": "along", "times": "times:,.0f", "sent": "MB:,.1f"}
    rows = [{**row, "sent": row["sent"] / 1e6} for row in network["collectives"]]
    least = "; ".join(f"{name} {b / 1e6:,.1f}" for name, b in network["minimum_by_purpose"].items())
    return "\n".join(
        [
            table(rows, headers),
            f"together {network['sent'] / 1e6:,.1f} MB a step; the least for this layout: "
            f"{network['minimum'] / 1e6:,.1f} MB ({least})",
        ]
    )


def _show_estimate(record: dict[str, Any]) -> str:
    estimate, flops = record["estimate"], record["flops"]
    rows = [{"how": name, **estimate[name]} for name in ("overlapped", "serial")]
    headers = {
        "how": "network and arithmetic",
        "step_seconds": "s a step:.3f",
        "tokens_per_second": "tokens/s:,.0f",
        "mfu": "MFU:.1%",
        "days": "days:.2f",
        "device_hours": "device-hours:,.0f",
    }
    return "\n".join(
        [
            f"FLOPs of a device and step: useful {flops['useful'] / 1e12:.2f} T, executed "
            f"{flops['executed'] / 1e12:.2f} T",
            f"at {ACHIEVABLE:.0%} of the data sheet's figures: arithmetic "
            f"{estimate['matmul_seconds']:.3f} s, memory {estimate['memory_seconds']:.3f} s "
            f"({estimate['memory_bytes'] / 1e9:.1f} GB), together "
            f"{estimate['device_seconds']:.3f} s; network {estimate['network_seconds']:.3f} s",
            table(rows, headers),
            f"days and device-hours are of {estimate['num_steps']:,} steps",
        ]
    )
