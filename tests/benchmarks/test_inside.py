"""The study of the inside: its tables, from results that are known."""

import json

import inside
import pytest


@pytest.fixture
def output(tmp_path):
    """Two seeds of each variant; a measure at the first and the last of two steps."""
    pairs = {kind: {"overall": {"shared": [0.0, 0.1]}} for kind in ("other_script", "two_scripts")}
    good = {"value": 1.0, "expected": "> 0.9", "ok": True}
    for variant in inside.VARIANTS:
        for seed in (0, 1):
            folder = tmp_path / inside.run_name(variant, seed) / "evaluation"
            folder.mkdir(parents=True)
            contrasts = [{"outer - middle": {"value": v}} for v in (0.1, 0.3 + 0.2 * seed)]
            results = {
                "neurons-steps": {"contrasts": contrasts, "controls": {"planted": good}},
                "concepts-steps": {"overall": {"shared": [0.0, 0.1]}, "pairs": pairs},
                "language-probe-steps": {},
                "ablation": {},
            }
            for name, result in results.items():
                text = json.dumps({"controls": {"c": good}} | result)
                (folder / f"{name}.json").write_text(text)
    return tmp_path


def row(table: str, *starts: str) -> list[str]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return next(cells for cells in rows if cells[: len(starts)] == [*starts])


def test_claims_are_means_over_seeds_at_the_end_and_since_step_0(output):
    found = row(inside.claims(output, 2), "outer less middle layers, separability", "langsamp")
    # Student's t with one degree of freedom: 12.706 standard errors of 0.1.
    assert found[2] == "+0.4000 (-0.8706 to +1.6706)"
    assert found[3] == "+0.3000 (-0.9706 to +1.5706)"
    found = row(inside.claims(output, 2), "O* of concepts, one language in two scripts", "vanilla")
    assert found[2:] == ["+0.1000 (+0.1000 to +0.1000)"] * 2


def test_a_control_that_failed_is_named_with_its_run(output):
    runs = [inside.run_name("vanilla", seed) for seed in (0, 1)]
    assert row(inside.controls(output, runs), "neurons")[1:] == ["2", "none"]
    file = output / runs[1] / "evaluation" / "ablation.json"
    file.write_text('{"controls": {"no edit": {"value": 0.5, "expected": 0.0, "ok": false}}}')
    expected = ["2", "vanilla_1: no edit 0.5, expected 0.0"]
    assert row(inside.controls(output, runs), "ablation")[1:] == expected


def test_costs_are_of_commands_that_ended_well(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(
        "$ langsamp evaluate neurons --model a\nlines\n  [30 s, 900 MB, exit 0]\n\n"
        "$ langsamp evaluate neurons --model b\nlines\n  [10 s, 950 MB, exit 0]\n\n"
        "$ langsamp evaluate neurons --model c\nlines\n  [20 s, 800 MB, exit 0]\n\n"
        "$ langsamp evaluate concepts --model c\nlines\n  [99 s, 999 MB, exit 2]\n"
    )
    table = inside.costs(log)
    assert row(table, "evaluate neurons")[1:] == ["20", "950"] and "concepts" not in table
