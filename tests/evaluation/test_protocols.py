"""Every task of ``langsamp evaluate``: its protocol keeps the contract of ``jobs``."""

import inspect
import math

import pytest

from langsamp_jax.cli.evaluation import TASKS, measures_of, protocol

_AVERAGES = {
    "all": {"languages": 4, "score": 0.5, "score_std": 0.1, "missing": None},
    "tail": {"languages": 2, "score": 0.3, "score_languages": 1},
}
_BY_LANGUAGE = {"averages": _AVERAGES}, {"all/score": 0.5, "tail/score": 0.3}
_CORRELATIONS = [{"with": "uriel", "rho": 0.4}, {"with": "wals", "rho": None}]
_CHOICES = [{"choice": "oracle", "mean": 0.7}, {"choice": "size", "mean": None}]
_EXPERTS = ("shared", "overlap", "overlap_other", "cross_ap", "reliability")
EXAMPLES = dict.fromkeys(TASKS, _BY_LANGUAGE) | {
    "mlm": ({"loss": 3.0}, {"loss": 3.0}),
    "neutrality": (
        {"mean": {"gap": [0.1, 0.3], "top1": [0, 1]}},
        {"last layer/gap": 0.3, "last layer/top1": 1},
    ),
    "concepts": (
        {
            "overall": {name: [0.1] for name in _EXPERTS},
            "pairs": {"two_scripts": {"overall": {"shared": [0.3]}}},
            "forcing": {"specific": {"across": {"value": 0.2}}},
        },
        {
            **dict.fromkeys(_EXPERTS, 0.1),
            "two_scripts/shared": 0.3,
            "forcing across/rise": 0.2,
        },
    ),
    "neurons": (
        {
            "selectivity": [[0.9, 0.9], [0.4, 0.2]],
            "null": {"mean": [[0.1, 0.1], [0.1, 0.1]]},
            "contrasts": [
                {},
                {"outer - middle": {"value": 0.2}, "first - middle": {"value": None}},
            ],
            "excess": [None, {"value": 0.01}],
        },
        {
            "selectivity": pytest.approx(0.3),
            "above null": pytest.approx(0.2),
            "outer - middle": 0.2,
            "clamped, above matched": 0.01,
        },
    ),
    "geometry": (
        {"tables": {"language": {"correlations": _CORRELATIONS}}},
        {"uriel/rho": 0.4},
    ),
    "language-probe": (
        {"accuracy": [[0.5, 0.4], [0.6, 0.9]], "control": [[0.1, 0.1], [0.1, 0.2]]},
        {
            "last layer/accuracy": 0.9,
            "best layer/accuracy": 0.9,
            "last layer/selectivity": pytest.approx(0.7),
        },
    ),
    "ablation": (
        {
            "drops": [
                {"component": "ffn", "layer": 1, "mode": "zero", "drop": 0.2},
                {"component": "all ffn", "layer": None, "mode": "zero", "drop": 0.9},
            ]
        },
        {"ffn 1, zero/drop": 0.2, "all ffn, zero/drop": 0.9},
    ),
    "donors": ({"metric": "macro_f1", "choices": _CHOICES}, {"oracle/macro_f1": 0.7}),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_protocol_is_three_functions(task):
    module = protocol(task.name)
    options = [*task.options, *(argument.option for argument in task.arguments)]
    options += ["config"] if task.finetune else []
    options += ["reference"] if task.reference else []
    assert list(inspect.signature(module.show).parameters) == ["record"]
    assert list(inspect.signature(module.measures).parameters) == ["record"]
    first, *named = inspect.signature(module.evaluate).parameters
    assert first == "model" and named[:2] == ["data", "journal"]
    assert set(named[2:]) == set(options)


@pytest.mark.parametrize("task", TASKS)
def test_measures_are_finite_numbers(task):
    record, expected = EXAMPLES[task]
    measures = measures_of({"task": task, **record})
    assert measures == expected
    assert all(math.isfinite(value) for value in measures.values())
