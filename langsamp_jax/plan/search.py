"""The largest batch that fits: a few compilations, each at a better guess."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from langsamp_jax.errors import UserError
from langsamp_jax.parallel.mesh import data_parallelism, make_mesh
from langsamp_jax.plan.record import plan
from langsamp_jax.training.config import Configs
from langsamp_jax.training.setup import Sizes

FIRST = 16  # rows of a device in the first guess
MOST = 1024


def largest_batch(
    configs: Configs,
    sizes: Sizes,
    devices: Sequence[jax.Device],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the record of the most rows per device and part that fit, all else as in ``configs``.

    More than 8 rows are tried in steps of 8. ``train.global_batch_size`` follows from the rows,
    the mesh and ``train.accumulation_steps``. ``log`` is told of every compilation.

    Raises:
      UserError: one row is too many, or nobody knows how much memory such a device has.
    """
    unit = data_parallelism(make_mesh(configs.mesh, devices)) * configs.train.accumulation_steps
    records: dict[int, dict[str, Any]] = {}

    def fits(rows: int) -> bool:
        train = dataclasses.replace(configs.train, global_batch_size=rows * unit)
        record = plan(dataclasses.replace(configs, train=train), sizes, devices)
        if "capacity" not in record["memory"]:
            raise UserError(f"the memory of a {record['device_kind']} is not known")
        records[rows] = record
        memory = {name: record["memory"][name] / 2**30 for name in ("total", "capacity")}
        log(f"{rows} rows: {memory['total']:.2f} of {memory['capacity']:.2f} GiB")
        return record["fits"]

    rows = search(fits, lambda rows: _guess(records[rows], rows))
    if rows == 0:
        raise UserError(
            "one row on each device is too many; see what to change with "
            f"--gin.train.global_batch_size={unit}"
        )
    return records[rows]


def search(fits: Callable[[int], bool], guess: Callable[[int], int]) -> int:
    """Finds the largest of 1 ... 8, 16, 24 ... MOST for which ``fits``; then no larger one fits.

    Args:
      guess: from a number that has been tried, about what the largest is.

    Returns:
      0 where not even 1 fits.
    """
    most, least, rows = MOST + 8, 0, FIRST  # the least that does not fit, the most that does
    while True:
        if fits(rows):
            least = rows
        else:
            most = rows
        below, above = _rounded(most - 1), _next(least)
        if above >= most:
            return least
        rows = min(max(_rounded(guess(rows)), above), below)


def _guess(record: dict[str, Any], rows: int) -> int:
    """Returns about the most rows that fit: everything but the state grows with them."""
    memory = record["memory"]
    fixed = memory["parameters"] + memory["optimizer"]
    return int(rows * (memory["capacity"] - fixed) / (memory["total"] - fixed))


def _rounded(rows: int) -> int:
    return rows // 8 * 8 if rows > 8 else max(rows, 1)


def _next(rows: int) -> int:
    return rows + 8 if rows >= 8 else rows + 1
