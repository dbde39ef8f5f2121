"""Runs side by side: variants over seeds, on everything that they were evaluated on.

Runs that differ in their seed alone are one variant. A difference to the first variant is paired by
seed where both have the same seeds; its interval is Student's over seeds, which is what three runs
allow: wide. Languages are no sample of anything here, and do not narrow it.
"""

import collections
import dataclasses
import json
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.statistics import mean_difference
from langsamp_jax.io.files import visible
from langsamp_jax.io.storage import absolute
from langsamp_jax.training.run import RESUMABLE_SETTINGS, Run, open_run

_SEED = "train.seed"
_ASKED = ("data", "pivot", "source", "on")  # fields of a result that say what was measured on

Measures = Callable[[Mapping[str, Any]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one run reached, by measure (``result/group/metric``; a result is named by its file, as
    a rule after its task), and on which data of each result."""

    variant: str
    seed: int
    values: dict[str, float]
    data: dict[str, str]


def compare(paths: Sequence[Path], measures_of: Measures) -> dict[str, Any]:
    """Compares runs by every measure that at least two variants have.

    Args:
      measures_of: the measures of a result that was written without them, by an older version.

    Returns:
      ``variants``: of each its ``name``, ``seeds`` and the settings by which it differs; and
      ``measures``: records with ``measure``, ``variant``, ``seeds`` (how many runs), ``mean``,
      ``std`` and, against the first variant that has it, ``difference``, ``low``, ``high`` (95 %)
      and ``paired``. None where one run alone cannot say, or where the two were not evaluated on
      the same data; ``data``: of each result, what the runs were evaluated on.

    Raises:
      UserError: a path is no run, a run occurs twice, or nothing was evaluated on two variants.
    """
    runs = [open_run(path) for path in paths]
    names = _variants(runs)
    measured = [_measured(name, run, measures_of) for name, run in zip(names, runs, strict=True)]
    twice = collections.Counter((result.variant, result.seed) for result in measured)
    for (variant, seed), count in twice.items():
        if count > 1:
            raise UserError(f"{count} runs are of variant {variant} with train.seed = {seed}")
    order = list(dict.fromkeys(names))
    measures = dict.fromkeys(measure for result in measured for measure in result.values)
    records = []
    for measure in measures:
        by_variant = {
            variant: [r for r in measured if r.variant == variant and measure in r.values]
            for variant in order
        }
        measured_variants = {variant: runs for variant, runs in by_variant.items() if runs}
        if len(measured_variants) > 1:
            records += _compared(measure, measured_variants)
    if not records:
        raise UserError(
            "there is nothing to compare: no evaluation in RUN/evaluation/ is there of two variants"
        )
    tasks = dict.fromkeys(task for result in measured for task in result.data)
    return {
        "variants": _described(order, names, runs),
        "measures": records,
        "data": {
            task: sorted({result.data[task] for result in measured if task in result.data})
            for task in tasks
        },
    }


def _compared(measure: str, by_variant: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    (_, baseline), *_ = by_variant.items()
    stem, records = measure.partition("/")[0], []
    for variant, results in by_variant.items():
        values = {result.seed: result.values[measure] for result in results}
        record = {
            "measure": measure,
            "variant": variant,
            "seeds": len(values),
            "mean": statistics.fmean(values.values()),
            "std": statistics.stdev(values.values()) if len(values) > 1 else None,
        }
        if results is not baseline:
            difference = (None, None, None, False)
            if len({result.data[stem] for result in (*results, *baseline)}) == 1:
                theirs = {result.seed: result.values[measure] for result in baseline}
                difference = mean_difference(values, theirs)
            names = ("difference", "low", "high", "paired")
            record |= dict(zip(names, difference, strict=True))
        records.append(record)
    return records


def _variants(runs: Sequence[Run]) -> list[str]:
    """Names each run, those that differ in their seed alone the same: by the beginning that the
    names of their folders share, and as many folders above as tell the variants apart."""
    kinds = [_kind(run) for run in runs]
    members = collections.defaultdict(list)
    for kind, run in zip(kinds, runs, strict=True):
        members[kind].append(str(absolute(run.path)).split("/"))
    shared = {
        kind: [_shared(names) for names in zip(*map(reversed, paths), strict=False)][::-1]
        for kind, paths in members.items()
    }
    for kind, paths in members.items():
        if list(shared.values()).count(shared[kind]) > 1:
            shared[kind] = paths[0]
    names = {kind: path[-1] for kind, path in shared.items()}
    for above in range(2, 1 + max(map(len, shared.values()))):
        times = collections.Counter(names.values())
        for kind, path in shared.items():
            if times[names[kind]] > 1:
                names[kind] = "/".join(path[-above:])
    return [names[kind] for kind in kinds]


def _shared(names: Sequence[str]) -> str:
    """Returns the beginning that names share, or else the first of them."""
    if len(set(names)) == 1:
        return names[0]
    # What begins a number is not shared: seed10 and seed11 are "seed".
    return re.sub(r"[-_.]?\d*$", "", os.path.commonprefix(names)) or names[0]


def _kind(run: Run) -> str:
    ignored = {_SEED, *RESUMABLE_SETTINGS}
    settings = {name: value for name, value in run.settings.items() if name not in ignored}
    return json.dumps([settings, run.store], sort_keys=True)


def _described(
    order: Sequence[str], names: Sequence[str], runs: Sequence[Run]
) -> list[dict[str, Any]]:
    first = {name: run for name, run in reversed(list(zip(names, runs, strict=True)))}
    settings = [first[name].settings for name in order]
    keys = [
        key
        for key in settings[0]
        if key not in {_SEED, *RESUMABLE_SETTINGS}
        and any(other.get(key) != settings[0][key] for other in settings)
    ]
    return [
        {
            "name": name,
            "seeds": [
                run.settings[_SEED] for other, run in zip(names, runs, strict=True) if other == name
            ],
            "settings": {key: first[name].settings.get(key) for key in keys},
        }
        for name in order
    ]


def _measured(variant: str, run: Run, measures_of: Measures) -> Measured:
    """Reads every result in the run's folder ``evaluation``."""
    values, data = {}, {}
    folder = run.path / "evaluation"
    for file in visible(folder, ".json") if folder.is_dir() else ():
        try:
            record = json.loads(file.read_bytes())
            measures = record["measures"] if "measures" in record else measures_of(record)
            values |= {f"{file.stem}/{name}": float(value) for name, value in measures.items()}
            layer = f" (layer {record['layer']})" if "layer" in record else ""
            asked = ", ".join(str(record[key]) for key in _ASKED if record.get(key))
            data[file.stem] = asked + layer
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged ({error!r}); evaluate again") from None
    return Measured(variant, run.settings[_SEED], values, data)
