"""What the concept experts of several steps of a training say together, and as a table.

O* of a layer at a step is tested against concepts that are relabelled in one of the two languages,
by the maximum over all layers and steps; its trend by Spearman's rho with log(step + 1) against
steps that are relabelled, by the maximum over the layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from langsamp_jax.evaluation.jobs import show_controls, show_skipped
from langsamp_jax.evaluation.statistics import max_test, rank_correlations
from langsamp_jax.io.progress import table
from langsamp_jax.neurons.experts import BY_LAYER

KINDS = {
    "two_scripts": "one language in two scripts",
    "family": "one family",
    "same_script": "other languages in one script",
    "other_script": "other languages in two scripts",
}
_OF_THE_LAST = (
    *("units", "unit_count", "labels", "concepts", "left_out", "languages", "sentences", "layers"),
    *("experts", "between_languages", "between_concepts", "shared_units", "planted"),
    *("truncated", "skipped"),
)
_FEWEST_STEPS = 4  # for a trend
_RELABELLINGS = 999


def over_steps(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the result of the records of some steps, in order.

    Returns:
      ``steps``; of ``BY_LAYER`` each measure [step][layer], and ``overall`` [step];
      ``expert_share`` [step][layer], of the K experts overall; by kind of ``pairs`` O* by layer and
      ``overall``; ``test`` and ``trend``; ``tracked`` units; ``forcing``; ``controls``; and of the
      last step ``between_languages``, ``between_concepts`` and ``shared_units``.
    """
    last, steps = records[-1], [record["step"] for record in records]
    null = np.stack([np.array(record["null_draws"]) for record in records], axis=1)
    values = np.array([record["shared"] for record in records])
    high, p = max_test(values, null[..., :-1])
    return {
        **{name: last[name] for name in _OF_THE_LAST},
        "steps": steps,
        **{name: [record[name] for record in records] for name in (*BY_LAYER, "expert_share")},
        "overall": {name: [r["overall"][name] for r in records] for name in BY_LAYER},
        "pairs": {kind: _by_step([r["pairs"][kind] for r in records]) for kind in last["pairs"]},
        "test": {"high": high, "p": p},
        "trend": _trend(steps, values),
        "tracked": _tracked(records),
        "forcing": _forcing([record["forcing"] for record in records]),
        "controls": _controls(records),
    }


def show(record: Mapping[str, Any]) -> str:
    names = {"overlap": "O same", "overlap_other": "O other", "shared": "O*"}
    names |= {"low": "low", "high": "high", "cross_ap": "cross-AP", "reliability": "reliability"}
    last, layers = record["steps"][-1], record["layers"]
    rows = [
        {"layer": str(k), **{name: record[name][-1][k] for name in names}} for k in range(layers)
    ]
    rows.append({"layer": "all", **{name: record["overall"][name][-1] for name in names}})
    headers = {name: f"{title}:.3f" for name, title in names.items()}
    counts = len(record["concepts"]), len(record["languages"]), record["sentences"]
    test = record["test"]
    lines = [
        table(rows, {"layer": "layer", **headers}),
        "{} concepts in {} languages, {:,} sentences; from {labels}".format(*counts, **record),
        f"chance O {record['overall']['chance'][-1]:.3f}; O* above {test['high']:.3f} in any layer "
        f"at any step has p < 0.05 (max over both: p = {test['p']:.3f})",
    ]
    lines += [
        f"left out, {why}: {len(names)}" for why, names in record["left_out"].items() if names
    ]
    for kind, pairs in record["pairs"].items():
        ends = (pairs["overall"][name][-1] for name in ("shared", "low", "high"))
        value = "O* {:.3f} ({:.3f} to {:.3f})".format(*ends)
        lines.append(f"{KINDS[kind]}: {value}, {pairs['pairs']} pairs")
    if record["trend"]:
        lines.append("trend of O* over {} steps: rho of its mean over layers {mean_of_layers:.2f}; "
            "best layer p = {p:.3f}".format(
            len(record["steps"]), **record["trend"]))  # fmt: skip
    lines += _show_forcing(record["forcing"])
    if len(record["steps"]) > 1:
        steps = [
            {"step": step, "shared": shared, "reliability": reliability}
            for step, shared, reliability in zip(
                record["steps"], *(record["overall"][k] for k in ("shared", "reliability")),
                strict=True,
            )
        ]  # fmt: skip
        headers = {"step": "step:,", "shared": "O*:.3f", "reliability": "reliability:.3f"}
        lines = [table(steps, headers), "", f"at step {last:,}:", *lines]
    if "left_out" in record["planted"]:
        lines.append(f"no neuron was planted: {record['planted']['left_out']}")
    lines += show_controls(record)
    if record["truncated"]:
        lines.append(f"{record['truncated']:,} sentences were longer than the model, and were cut")
    return "\n".join([*lines, *show_skipped(record)])


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    names = ("shared", "overlap", "overlap_other", "cross_ap", "reliability")
    found = {name: record["overall"][name][-1] for name in names}
    found |= {f"{k}/shared": p["overall"]["shared"][-1] for k, p in record["pairs"].items()}
    specific = record["forcing"].get("specific", {})
    return found | {f"forcing {name}/rise": part["value"] for name, part in specific.items()}


def _by_step(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scopes = [step["by_scope"] for step in pairs]
    fields = ("shared", "low", "high", "error")
    return {
        "pairs": pairs[-1]["pairs"],
        "shared": [[scope["shared"] for scope in step[:-1]] for step in scopes],
        "overall": {name: [step[-1][name] for step in scopes] for name in fields},
    }


def _trend(steps: Sequence[int | None], values: np.ndarray) -> dict[str, Any] | None:
    """Returns rho of each layer and of their mean with log(step + 1); of the maximum over layers
    under the null ``high``, its 95 % quantile, and p, one-sided. None with too few steps."""
    if len(steps) < _FEWEST_STEPS:
        return None
    curves = np.vstack([values.T, values.mean(axis=1)])
    times = np.log1p(np.array(steps, float))

    def rho(order: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rank_correlations(curves, np.tile(times[order], (len(curves), 1))))

    rng = np.random.default_rng(0)
    null = np.stack([rho(rng.permutation(len(steps))) for _ in range(_RELABELLINGS)])
    *layers, mean = rho(np.arange(len(steps)))
    high, p = max_test(np.array(layers), null[:, :-1])
    found = {"layers": [float(x) for x in layers], "mean_of_layers": float(mean)}
    return found | {"high": high, "p": p}


def _tracked(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns, of some concepts, the unit that is best at the last step, the mean over languages,
    and its average precision at each step."""
    last, tracked = records[-1], []
    width = last["unit_count"] // last["layers"]
    for place, precisions in enumerate(last["unit_precisions"]):
        unit = int(np.argmax(precisions))
        tracked.append({
            "concept": last["concepts"][place],
            "layer": unit // width,
            "unit": unit % width,
            "precision": [record["unit_precisions"][place][unit] for record in records],
        })  # fmt: skip
    return tracked


def _forcing(forcings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the forcing of the last step, and ``by_step`` what is specific."""
    if "left_out" in forcings[-1]:
        return dict(forcings[-1])
    kinds = forcings[-1]["specific"]
    steps = {kind: [f["specific"][kind]["value"] for f in forcings] for kind in kinds}
    return {**forcings[-1], "by_step": steps}


def _show_forcing(forcing: Mapping[str, Any]) -> list[str]:
    if "left_out" in forcing:
        return [f"no forcing: {forcing['left_out']}"]
    words = {"within": "in its own language", "across": "in other languages"}
    return [
        "forced experts of a concept, against those of another: its words {value:+.3f} nats "
        "({low:+.3f} to {high:+.3f}) {}".format(words[kind], **part)
        for kind, part in forcing["specific"].items()
    ]


def _controls(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    controls = {"labels permuted in one language": _is_zero([r["permuted"] for r in records])}
    first = records[0]
    if first["step"] == 0 and "other_script" in first["pairs"]:
        scopes = first["pairs"]["other_script"]["by_scope"]
        controls["step 0, languages in two scripts"] = _is_zero([scopes])
    planted = [r["planted"]["expert"] for r in records if "expert" in r["planted"]]
    if planted:
        share = min(sum(expert.values()) / len(expert) for expert in planted)
        controls["a planted neuron is an expert in every language"] = {
            "value": round(share, 4),
            "expected": "1",
            "ok": share == 1,
        }
    return controls


def _is_zero(steps: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Returns the control that O* is 0 in all layers and steps: the value that is furthest off, in
    errors, within the bound that so many values together leave with a probability of 95 %."""
    scopes = [scope for step in steps for scope in step]
    bound = norm.ppf(1 - 0.025 / len(scopes))
    far = max(scopes, key=lambda scope: abs(scope["shared"]) / max(scope["error"], 1e-9))
    limit = bound * far["error"]
    ok = bool(abs(far["shared"]) <= limit + 1e-9)
    return {"value": round(far["shared"], 4), "expected": f"0 within ±{limit:.4f}", "ok": ok}
