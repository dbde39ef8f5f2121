"""Variants over seeds: means worked by hand, and what cannot be compared."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langsamp_jax.cli.evaluation import measures_of
from langsamp_jax.cli.main import main
from langsamp_jax.report.compare import compare

# Runs


@pytest.fixture(scope="module")
def template(store_path, make_run) -> Path:
    return make_run(store_path).path


@pytest.fixture
def new_run(template, tmp_path) -> Callable[..., Path]:
    """``new_run(name, seed, settings, task=result, ...)``: an evaluated run, without checkpoints.
    A number as a result is the top-10 accuracy over all languages."""

    def new_run(name: str, seed: int, settings: dict[str, Any] | None = None, **results) -> Path:
        run = tmp_path / name
        (run / "evaluation").mkdir(parents=True)
        for file in ("inventory.json", "tokenizer.model"):
            shutil.copy(template / file, run)
        record = json.loads((template / "run.json").read_text())
        record["settings"] |= {"train.seed": seed} | (settings or {})
        (run / "run.json").write_text(json.dumps(record))
        for task, found in results.items():
            if isinstance(found, float):
                found = {"averages": {"all": {"languages": 3, "top10": found}}}
            result = {"task": task, **found}
            (run / "evaluation" / f"{task}.json").write_text(json.dumps(result))
        return run

    return new_run


VANILLA = {"model.placement": "none"}
TWO = (("a", {}), ("b", VANILLA))


def test_means_worked_by_hand(new_run):
    """In the order of the arguments; free settings make no variant."""
    runs = [
        new_run("vanilla-0", 0, VANILLA, sib200=0.4),
        new_run("langsamp-1", 1, sib200=0.7),
        new_run("vanilla-1", 1, VANILLA | {"train.eval_every": 7}, sib200=0.6),
        new_run("langsamp-0", 0, {"mesh.fsdp": 2}, sib200=0.6),
    ]
    found = compare(runs, measures_of)
    assert found["variants"] == [
        {"name": "vanilla", "seeds": [0, 1], "settings": {"model.placement": "none"}},
        {"name": "langsamp", "seeds": [1, 0], "settings": {"model.placement": "output"}},
    ]
    vanilla, langsamp = found["measures"]
    assert vanilla == {
        **{"measure": "sib200/all/top10", "variant": "vanilla", "seeds": 2, "mean": 0.5},
        "std": pytest.approx(np.sqrt(0.02)),
    }
    assert langsamp["mean"] == pytest.approx(0.65) and langsamp["difference"] == pytest.approx(0.15)
    # 0.2 and 0.1: mean 0.15, deviation of the mean 0.05, t of one degree of freedom 12.706
    assert langsamp["low"] == pytest.approx(0.15 - 12.7062 * 0.05, abs=1e-5)
    assert langsamp["high"] == pytest.approx(0.15 + 12.7062 * 0.05, abs=1e-5)
    assert langsamp["paired"] is True
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_only_the_same_seeds_are_a_pair(new_run):
    for seed in (0, 1):
        new_run(f"vanilla-{seed}", seed, VANILLA, sib200=0.4 + seed / 10)
        new_run(f"langsamp-{seed}", seed + 1, sib200=0.6 + seed / 10)
    folder = new_run("other", 9, {"model.placement": "input"}, sib200=0.9).parent
    names = ("vanilla-0", "vanilla-1", "langsamp-0", "langsamp-1", "other")
    _, langsamp, other = compare([folder / name for name in names], measures_of)["measures"]
    assert langsamp["paired"] is False and langsamp["low"] < 0.2 < langsamp["high"]
    assert (other["seeds"], other["std"], other["low"], other["high"]) == (1, None, None, None)
    assert other["difference"] == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (("langsamp-v2-0", "langsamp-v2-1"), "langsamp-v2"),
        (("alpha0.3_10", "alpha0.3_11"), "alpha0.3"),
        (("seed10", "seed11"), "seed"),
        (("x.s0", "x.s1", "x.s2"), "x.s"),
        (("0", "1"), "0"),
    ],
)
def test_a_variant_is_called_what_its_folders_share(folders, name, new_run):
    runs = [new_run(f"{folder}", seed, sib200=0.1) for seed, folder in enumerate(folders)]
    runs.append(new_run("single-2024", 0, VANILLA, sib200=0.2))
    found = compare(runs, measures_of)
    assert [variant["name"] for variant in found["variants"]] == [name, "single-2024"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("a/run", "b/run"), ["a/run", "b/run"]),
        (("a/run-0", "a/run-1", "b/run-0", "b/run-1"), ["a/run", "b/run"]),
        (("seed0/run", "seed1/run", "b/run"), ["seed/run", "b/run"]),
        (("a/x/run", "b/x/run"), ["a/x/run", "b/x/run"]),
        (("run-0", "run-1", "run"), ["run-0", "run"]),
        (("a/run-0", "a/run-1", "other"), ["run", "other"]),
    ],
)
def test_two_variants_of_one_name_are_told_apart_by_their_folders(folders, names, new_run):
    """The last, or the last two where there are four, are of the second variant."""
    second = folders[2:] if len(folders) == 4 else folders[-1:]
    runs = [
        new_run(folder, seed, VANILLA if folder in second else {}, sib200=0.1)
        for seed, folder in enumerate(folders)
    ]
    found = compare(runs, measures_of)
    assert [variant["name"] for variant in found["variants"]] == names
    assert {record["variant"] for record in found["measures"]} == set(names)


def test_measures_of_every_task(new_run):
    results = {
        "mlm": {"loss": 3.0, "languages": []},
        "ner": {
            "averages": {
                "all": {"languages": 4, "entity_f1": 0.5, "entity_f1_std": 0.1, "precision": None},
                "tail": {"languages": 2, "entity_f1": 0.3, "entity_f1_languages": 1},
            }
        },
        "neutrality": {"mean": {"gap": [0.1, 0.2, 0.3], "top1": [0, 0.5, 1]}},
        "geometry": {
            "tables": {
                "language": {
                    "correlations": [{"with": "uriel", "rho": 0.4}, {"with": "wals", "rho": None}]
                }
            }
        },
        "donors": {
            "metric": "macro_f1",
            "choices": [{"choice": "oracle", "mean": 0.7}, {"choice": "size", "mean": None}],
        },
    }
    runs = [new_run(name, 0, settings, **results) for name, settings in (("a", {}), ("b", VANILLA))]
    found = {record["measure"]: record["mean"] for record in compare(runs, measures_of)["measures"]}
    assert found == {
        "mlm/loss": 3.0,
        "ner/all/entity_f1": 0.5,
        "ner/tail/entity_f1": 0.3,
        "neutrality/last layer/gap": 0.3,
        "neutrality/last layer/top1": 1.0,
        "geometry/uriel/rho": 0.4,
        "donors/oracle/macro_f1": 0.7,
    }


def test_measures_in_the_result_are_taken_as_they_are(new_run):
    """Nothing else of the result is looked at, so that no protocol is imported."""

    def never(record: dict[str, Any]) -> dict[str, float]:
        raise AssertionError(record)

    result = {"measures": {"all/new": 0.25}, "averages": None}
    runs = [new_run(name, 0, settings, **{"new-task": result}) for name, settings in TWO]
    (one, two) = compare(runs, never)["measures"]
    assert one["measure"] == two["measure"] == "new-task/all/new" and one["mean"] == 0.25


def test_it_needs_neither_jax_nor_flax_nor_orbax(new_run):
    result = {"measures": {"loss": 3.0}}
    runs = [str(new_run(name, 0, settings, mlm=result)) for name, settings in TWO]
    code = (
        "import sys; from langsamp_jax.cli.main import main; "
        f"assert main(['compare', *{runs}]) == 0; "
        "print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_one_variant_alone_has_is_left_out(new_run):
    """And the first that has a measure is what the others are compared with."""
    runs = [
        new_run("a", 0, VANILLA, sib200=0.1),
        new_run("b", 0, sib200=0.3, ner=0.5),
        new_run("c", 0, {"model.placement": "input"}, ner=0.9, pos=0.2),
    ]
    found = [
        (record["measure"], record["variant"], record.get("difference"))
        for record in compare(runs, measures_of)["measures"]
    ]
    assert found == [
        ("sib200/all/top10", "a", None),
        ("sib200/all/top10", "b", pytest.approx(0.2)),
        ("ner/all/top10", "b", None),
        ("ner/all/top10", "c", pytest.approx(0.4)),
    ]


def test_what_cannot_be_compared_is_refused(new_run, tmp_path, refused):
    one, two = new_run("a", 0, sib200=0.1), new_run("b", 0, VANILLA, ner=0.1)
    assert "is no run (it has no run.json)" in refused(compare, [one, tmp_path], measures_of)
    for runs in ([one, two], [one], [two, new_run("c", 0)]):
        assert "nothing to compare: no evaluation in RUN/evaluation/" in refused(
            compare, runs, measures_of
        )
    line = "2 runs are of variant a with train.seed = 0"
    assert refused(compare, [one, one, two], measures_of) == line
    assert refused(compare, [one, new_run("a2", 0, sib200=0.2)], measures_of) == line


@pytest.mark.parametrize(
    "text",
    [
        '{"task": "sib200", "aver',
        "[1, 2]",
        '{"averages": {}}',
        '{"task": "sib200", "averages": [1]}',
        '{"task": "sib200", "averages": {"all": 1}}',
        '{"task": "sib200", "averages": {"all": {"top10": "high"}}}',
        '{"task": "neutrality", "mean": {"gap": []}}',
        '{"task": "mlm"}',
    ],
)
def test_a_damaged_result_is_named(text, new_run, refused):
    runs = [new_run("a", 0, sib200=0.1), new_run("b", 0, VANILLA, sib200=0.1)]
    file = runs[1] / "evaluation" / "sib200.json"
    file.write_text(text)
    line = refused(compare, runs, measures_of)
    assert str(file) in line and "is damaged" in line and "evaluate again" in line


def test_the_command(new_run, tmp_path, capsys):
    for seed in (0, 1):
        new_run(f"vanilla-{seed}", seed, VANILLA, sib200=0.4, ner=0.1)
        new_run(f"langsamp-{seed}", seed, sib200=0.5, ner=0.1)
    runs = [str(run) for run in sorted(tmp_path.iterdir(), reverse=True)]
    output = tmp_path / "compared.json"
    assert main(["compare", *runs, "--output", str(output), "--measures", "sib"]) == 0
    shown = capsys.readouterr().out
    assert "langsamp" in shown and "+0.1000" in shown and "ner" not in shown
    assert json.loads(output.read_text()) == compare(runs, measures_of)
    assert main(["compare", *runs, "--measures", "nothing"]) == 0
    said = capsys.readouterr().out
    assert "--measures nothing: no name holds this: " in said and "sib200/all/top10" in said
    assert main(["compare", runs[0]]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_runs_that_were_evaluated_on_different_data_are_not_compared(new_run, capsys):
    """It is said before the numbers; what was measured on the same data is compared."""

    def result(data: str, top10: float, **asked: str) -> dict[str, Any]:
        return {"data": data, **asked, "averages": {"all": {"languages": 3, "top10": top10}}}

    runs = [
        new_run("vanilla", 0, VANILLA, ner=result("uner", 0.5), sib200=result("sib", 0.5)),
        new_run("langsamp", 0, ner=result("wikiann", 0.7), sib200=result("sib", 0.7)),
        new_run("input", 0, {"model.placement": "input"}, ner=result("uner", 0.9),
                sib200=result("sib", 0.9, source="deu_Latn")),
    ]  # fmt: skip
    found = compare(runs, measures_of)
    assert found["data"] == {"ner": ["uner", "wikiann"], "sib200": ["sib", "sib, deu_Latn"]}
    differences = {(r["measure"], r["variant"]): r.get("difference") for r in found["measures"]}
    assert differences["ner/all/top10", "langsamp"] is None
    assert differences["ner/all/top10", "input"] == pytest.approx(0.4)
    assert differences["sib200/all/top10", "langsamp"] == pytest.approx(0.2)
    assert differences["sib200/all/top10", "input"] is None
    assert main(["compare", *map(str, runs)]) == 0
    first, second, *table = capsys.readouterr().out.splitlines()
    assert first == (
        "ner: the runs were evaluated on different data (uner; wikiann): no difference is given "
        "between those"
    )
    assert second.startswith("sib200: ") and table[0].startswith("measure")


def test_two_results_of_one_task_are_two_measures(new_run, capsys):
    """Retrieval at two layers; and the layer is said where the runs' differ."""

    def result(layer: int, top10: float) -> dict[str, Any]:
        task, averages = "retrieval-bible", {"all": {"languages": 3, "top10": top10}}
        return {"task": task, "data": "bible", "layer": layer, "averages": averages}

    runs = [
        new_run(
            name,
            0,
            settings,
            **{"retrieval-bible": result(8, a), "retrieval-bible-layer-last": last},
        )
        for name, settings, a, last in (
            ("a", {}, 0.5, result(12, 0.25)),
            ("b", VANILLA, 0.75, result(24, 0.125)),
        )
    ]
    compared = compare(runs, measures_of)
    means = {(r["measure"], r["variant"]): r["mean"] for r in compared["measures"]}
    assert means == {
        ("retrieval-bible/all/top10", "a"): 0.5,
        ("retrieval-bible/all/top10", "b"): 0.75,
        ("retrieval-bible-layer-last/all/top10", "a"): 0.25,
        ("retrieval-bible-layer-last/all/top10", "b"): 0.125,
    }
    assert main(["compare", *map(str, runs)]) == 0
    assert "different data (bible (layer 12); bible (layer 24))" in capsys.readouterr().out
