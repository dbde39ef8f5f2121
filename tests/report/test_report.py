"""The report as files: the page, the figures and their numbers; damaged and absent input."""

import csv
import json
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langsamp_jax.cli.main import main, parser
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.report.evaluations import failed_controls
from langsamp_jax.report.page import _tiles, write_report
from langsamp_jax.report.run_results import read_results
from langsamp_jax.report.sections import donors, validation

FIGURES = {
    *("loss", "throughput", "model-flops-utilisation", "learning-rate", "step-time"),
    *("validation-loss", "loss-against-unigrams", "mixture"),
    *("neutrality-by-layer", "neutrality-pairs", "retrieval-by-layer"),
    *("concepts-by-layer", "concepts-by-step", "concepts-tracked", "concepts-languages"),
    *("concepts-concepts", "concepts-forcing"),
    *("neurons-by-layer", "neurons-rank-disagreement", "neurons-of-languages"),
    *("neurons-clamped", "neurons-over-training"),
    *("language-probe-by-layer", "language-probe-by-step", "language-probe-spread"),
    *("ablation-by-layer", "ablation-blocks-left-out"),
    *("retrieval-bible", "retrieval-tatoeba", "map-of-languages", "map-of-scripts", "donors"),
}


class Reader(HTMLParser):
    """The ids, tags and text of a page; the text of scripts and styles apart."""

    def __init__(self, page: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.code, self._open = "", "", ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids.add(dict(attrs).get("id"))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in ("script", "style"):
            self.code += data
        else:
            self.text += data

    @property
    def specs(self) -> dict[str, Any]:
        start = self.code.index('{"dark"')
        return json.JSONDecoder().raw_decode(self.code[start:])[0]["specs"]


def numbers(run: Path, figure: str) -> list[dict[str, str]]:
    with open(run / "report" / "figures" / f"{figure}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def reported(full_run: Path) -> Path:
    write_report(full_run)
    return full_run


def test_the_command_prints_the_page(new_run, tmp_path, capsys):
    run = new_run(tmp_path / "run")
    assert main(["report", "--run", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report" / "index.html")


def test_everything_there_is_has_a_part_and_figures_in_three_forms(reported):
    page = Reader(reported / "report" / "index.html")
    parts = ["training", "validation", "mixture", "neutrality", "retrieval", "map", "tasks"]
    parts += ["concepts", "neurons", "language-probe", "ablation"]
    assert {*parts, "donors", "configuration"} <= page.ids and "absent" not in page.ids
    assert page.specs.keys() == FIGURES
    files = {file.name for file in (reported / "report" / "figures").iterdir()}
    assert files == {f"{name}.{form}" for name in FIGURES for form in ("png", "svg", "csv")}
    for name in FIGURES:
        file = reported / "report" / "figures" / name
        png = file.with_suffix(".png").read_bytes()
        assert png.startswith(b"\x89PNG") and struct.unpack(">I", png[16:20])[0] > 1800
        svg = ElementTree.fromstring(file.with_suffix(".svg").read_text("utf-8"))
        marks = [part for part in svg.iter() if "mark-" in part.get("class", "")]
        assert any(len(mark) for mark in marks), name


def test_the_page_is_complete_in_itself_and_small(reported):
    page = reported / "report" / "index.html"
    assert page.stat().st_size < 3e6
    for tag, attributes in Reader(page).tags:
        assert "src" not in attributes, tag
        if tag in ("a", "link"):
            target = attributes["href"]
            assert target.startswith(("#", "data:,", "figures/")), target
            if target.startswith("figures/"):
                assert (page.parent / target).is_file()


def test_headings_regions_and_charts_have_names(reported):
    page = Reader(reported / "report" / "index.html")
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    for _, attributes in page.tags:
        if label := attributes.get("aria-labelledby"):
            assert label in page.ids
    links = {a["href"] for tag, a in page.tags if tag == "a" and a["href"].startswith("#")}
    assert {link.removeprefix("#") for link in links} <= page.ids
    assert all(len(spec["description"]) > 20 for spec in page.specs.values())


def test_csvs_hold_the_numbers_of_the_evaluations(reported):
    def read(stem):
        return json.loads((reported / "evaluation" / f"{stem}.json").read_text())

    losses = {r["language"]: r["loss"] for r in read("mlm")["languages"] if r["loss"] is not None}
    found = numbers(reported, "validation-loss")
    assert {r["language"]: float(r["validation loss"]) for r in found} == losses
    assert [float(r["validation loss"]) for r in found] == sorted(losses.values())
    assert {r["group"] for r in found if r["language"] in ("qaa_Latn", "bod_Tibt")} == {"tail"}

    bible = {r["language"]: r["top10"] for r in read("retrieval-bible")["languages"]}
    found = numbers(reported, "retrieval-bible")
    assert {r["language"]: float(r["top-10"]) for r in found} == bible

    neutral = read("neutrality")
    names, layer = neutral["languages"], 4  # two thirds of 6 layers, the embeddings being 0
    gaps = {
        frozenset((names[i], names[j])): by_layer[layer]
        for (i, j), by_layer in zip(neutral["pairs"], neutral["gap"], strict=True)
    }
    found = numbers(reported, "neutrality-pairs")
    assert {frozenset((r["one"], r["other"])): float(r["gap"]) for r in found} == gaps
    found = numbers(reported, "neutrality-by-layer")
    for series in ("matched", "random", "gap"):
        column = [float(r["value"]) for r in found if r["series"] == series]
        assert column == neutral["mean"][series]

    table = read("geometry")["tables"]["language"]
    found = numbers(reported, "map-of-languages")
    assert [[float(r["x"]), float(r["y"])] for r in found] == table["coordinates"]
    assert [r["family"] for r in found] == [f or "unknown" for f in table["families"]]
    found = [r["choice"] for r in numbers(reported, "donors")]
    assert found == ["oracle", "language vectors", "English", "random"]


def test_the_charts_are_drawn_from_the_numbers_of_the_csvs(reported):
    specs = Reader(reported / "report" / "index.html").specs
    for name, title, field in (
        ("loss", "value", "value"),
        ("validation-loss", "validation loss", "value"),
        ("mixture", "share", "share"),
        ("neutrality-pairs", "gap", "value"),
        ("retrieval-bible", "top-1", "second"),
        ("map-of-languages", "x", "x"),
        ("donors", "high", "high"),
    ):
        of_csv = [float(record[title]) for record in numbers(reported, name)]
        (drawn,) = specs[name]["datasets"].values()
        assert [record[field] for record in drawn] == pytest.approx(of_csv, rel=1e-5), name


@pytest.mark.parametrize(
    "mixture",
    [
        {},
        {
            "schedule": [
                {"from_step": 20, "temperature": 1.0},
                {"from_step": 90, "temperature": 9.0},
            ]
        },
        {"maximum_epochs": 40.0, "temperature": 100.0},
    ],
)
def test_the_shares_are_those_that_the_sampler_drew(mixture, new_run, log, store_path, tmp_path):
    run = new_run(tmp_path / "run", **mixture)
    log(run, range(1, 41))
    write_report(run)
    manifest = Store(store_path).manifest
    sampler = MixtureConfig(**mixture).sampler(manifest, 0, 100, 8)
    languages = np.concatenate([sampler.batch(step, 8)[0] for step in range(40)])
    counts = np.bincount(languages, minlength=len(manifest.names))
    found = numbers(run, "mixture")
    share = {r["language"]: float(r["share"]) for r in found if r["series"] == "drawn"}
    assert share == dict(zip(manifest.names, counts / 320, strict=True))
    rate = {r["language"]: float(r["share"]) for r in found if r["series"] == "rate p"}
    assert sum(rate.values()) == pytest.approx(1)
    assert all(abs(320 * (rate[name] - share[name])) < 2 for name in rate)


def test_the_figures_of_concepts_have_what_the_result_has(reported):
    record = json.loads((reported / "evaluation" / "concepts-steps.json").read_text())
    cells = numbers(reported, "concepts-by-step")
    assert [float(cell["value"]) for cell in cells] == pytest.approx(sum(record["shared"], []))
    assert [int(cell["step"]) for cell in cells[::2]] == record["steps"]
    pairs = {(cell["one"], cell["other"]): float(cell["value"])
             for cell in numbers(reported, "concepts-languages")}  # fmt: skip
    names = record["languages"]
    assert pairs[names[0], names[1]] == pytest.approx(record["between_languages"][0][1])
    forced = numbers(reported, "concepts-forcing")
    assert [float(cell["value"]) for cell in forced] == pytest.approx([0.25, 0, 0, 0.25])


def test_a_run_that_has_not_begun_says_what_is_missing(new_run, tmp_path):
    run = new_run(tmp_path / "run")
    page = Reader(write_report(run))
    assert page.specs.keys() == {"mixture"}
    assert {"mixture", "configuration", "absent"} <= page.ids
    assert "no validation yet" in page.text
    for task in ("mlm", "neutrality", "neurons", "concepts", "language-probe", "ablation"):
        assert f"langsamp evaluate {task}" in page.text
    for task in ("retrieval", "geometry", "donors"):
        assert f"langsamp evaluate {task}" in page.text
    for command in re.findall(rf"langsamp (evaluate \S+ --model {run} --\S+ \S+)", page.text):
        assert parser().parse_args(command.split()).model == [run]


def test_an_ablation_without_drops_shows_changes_and_says_why(full_run, new_run, tmp_path):
    run, why = new_run(tmp_path / "run"), "the whole model is not better than chance"
    record = json.loads((full_run / "evaluation" / "ablation.json").read_bytes())
    for drop in record["drops"]:
        drop |= {"drop": None, "low": None, "high": None}
    ends = {"min": 4.1, "median": 4.2, "max": 4.4}
    record |= {"no_drop": why, "subsets": [{"removed": 1, "subsets": 3, **ends}]}
    record["cumulative"] = record["cumulative"][:1]
    (run / "evaluation").mkdir()
    (run / "evaluation" / "ablation.json").write_text(json.dumps(record))
    text = Reader(write_report(run)).text
    assert f"No drops are given: {why}." in text and "+0.200" in text
    assert {float(cell["value"]) for cell in numbers(run, "ablation-by-layer")} == {0.2}
    found = {c["series"]: float(c["value"]) for c in numbers(run, "ablation-blocks-left-out")}
    ranges = {"lowest": 4.1, "median": 4.2, "highest": 4.4}
    of_all = {f"all choices, {end}": value for end, value in ranges.items()}
    assert found == {"from the top": 4.2, **of_all}


def test_it_is_made_anew_while_the_run_goes_on(new_run, log, tmp_path):
    run = new_run(tmp_path / "run")
    log(run, range(1, 8))
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 8, "train/lo')  # being written
    assert "step 7 of 100" in Reader(write_report(run)).text
    assert [int(r["step"]) for r in numbers(run, "loss") if r["series"] == "training"] == [
        *range(1, 8)
    ]
    (run / "metrics.jsonl").write_text("")
    log(run, range(1, 21))
    page = Reader(write_report(run))
    assert "step 20 of 100" in page.text and "at step 20" in page.text
    assert len(numbers(run, "validation-loss")) == 14  # from the metrics: no mlm.json
    assert "langsamp evaluate mlm" in page.text


def test_a_run_of_an_older_version_has_no_mixture(new_run, tmp_path):
    run = new_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    for field in ("rows", "lines"):
        del record[field]
    (run / "run.json").write_text(json.dumps(record))
    page = Reader(write_report(run))
    assert "mixture" not in page.ids and "langsamp mixture --data STORE" in page.text


def test_numbers_that_are_none_make_no_broken_page(new_run, log, tmp_path):
    run = new_run(tmp_path / "run")
    log(run, range(1, 4))
    (run / "evaluation").mkdir()
    record = {"languages": [{"language": "deu_Latn", "top10": float("nan")}]}
    (run / "evaluation" / "retrieval-x.json").write_text(json.dumps(record))
    assert "retrieval-x" in Reader(write_report(run)).specs  # JSON has no NaN: it would not parse


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("evaluation/mlm.json", '{"loss": 4.2, "langu', "damaged: "),
        ("evaluation/ner.json", '{"metric": "entity_f1"}', "it has no 'languages'"),
        ("evaluation/ner.json", "[]", "expected an object"),
        (
            "evaluation/sib200.json",
            '{"metric": "macro_f1", "languages": [{"language": "deu_Latn"}]}',
            "it has no 'macro_f1'",
        ),
        ("evaluation/geometry.json", '{"tables": {"language": {"names": []}}}', "'coordinates'"),
        ("evaluation/donors.json", '{"metric": "x", "on": "y", "choices": [{}]}', "'choice'"),
        ("metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 3}\n', "damaged: "),
        ("metrics.jsonl", '{"train/loss": 1}\n', "a line has no step"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(name, content, complaint, new_run, tmp_path, capsys):
    run = new_run(tmp_path / "run")
    (run / "evaluation").mkdir()
    (run / name).write_text(content)
    assert main(["report", "--run", str(run)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(run / name) in line and complaint in line
    assert not (run / "report").exists()


def test_no_run_is_one_line(tmp_path, capsys):
    assert main(["report", "--run", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err


def test_head_is_what_xlmr_has_seen_or_else_the_largest(new_run, tmp_path):
    run = new_run(tmp_path / "run")
    results = read_results(run)
    tokens = results.run.tokens
    assert [n for n in tokens if results.group(n) == "head"] == [max(tokens, key=tokens.get)]
    results.run.tokens["deu_Latn"] = 1
    results = read_results(run)
    results.run.tokens["deu_Latn"] = 1
    assert [n for n in results.run.tokens if results.group(n) == "head"] == ["deu_Latn"]


def test_donors_are_compared_on_the_targets_that_all_have(new_run, evaluate, tmp_path):
    """A mean over other targets stands in the table, with their number."""
    run = new_run(tmp_path / "run")
    file = run / "evaluation" / "donors.json"
    record = evaluate(run)["donors"]
    record["choices"] += [{"choice": "same script", "mean": 0.9, "low": 0.8, "high": 1.0,
                           "targets": 3, "common": {"mean": 0.6, "low": 0.5, "high": 0.7,
                                                    "targets": 2}}]  # fmt: skip
    file.write_text(json.dumps(record))
    section = donors.section(read_results(run))
    means = {r["choice"]: r["mean"] for r in section.figures[0].records}
    assert means["same script"] == 0.6 < means["oracle"] == pytest.approx(0.8)
    assert "over the same 5 targets" in section.figures[0].caption
    assert ["same script", "3", "90.0%", "80.0% to 100.0%"] in [
        r[:4] for r in section.tables[0].rows
    ]
    for choice in record["choices"]:
        del choice["common"]  # as an older version wrote it
    file.write_text(json.dumps(record))
    (figure,) = donors.section(read_results(run)).figures
    assert {r["choice"] for r in figure.records} >= {"same script (3)", "oracle (9)"}
    assert "the targets that each has (in brackets)" in figure.caption


def test_an_old_baseline_is_not_shown(new_run, evaluate, tmp_path):
    """The entropy that an older version measured is another thing, and would be compared with."""
    run = new_run(tmp_path / "run")
    file = run / "evaluation" / "mlm.json"
    record = evaluate(run)["mlm"]

    def shown(record: dict[str, Any]) -> tuple[str, list[str], list[str]]:
        file.write_text(json.dumps(record))
        results = read_results(run)
        section = validation.section(results)
        tiles = [" ".join(tile) for tile in _tiles(results) if "unigram" in tile[0]]
        return section.text + section.command, tiles, [figure.name for figure in section.figures]

    text, tiles, figures = shown(record)
    assert "4.500 nats, 1.000 below the unigram loss of 5.500" in text
    assert tiles == ["Below unigram loss 1.00 nats, of 5.50"] and len(figures) == 2
    text, tiles, _ = shown({**record, "loss": 5.75})
    assert "0.250 above the unigram loss" in text
    assert tiles == ["Above unigram loss 0.25 nats, of 5.50"]
    text, tiles, figures = shown(
        json.loads(json.dumps(record).replace("unigram_loss", "unigram_entropy"))
    )
    assert "5.500" not in text and not tiles and figures == ["validation-loss"]
    assert "Measured at step 50" in text and "langsamp evaluate mlm" in text


def test_a_report_opens_the_record_of_a_run_alone():
    """No model is built, no checkpoint is read: the libraries for both stay out."""
    code = (
        "import sys, langsamp_jax.report.page; "
        "print(*{'flax', 'orbax', 'tensorboard', 'torch', 'tensorflow'} & sys.modules.keys())"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert child.stdout.strip() == ""


def test_a_control_that_failed_is_said():
    control = {"value": 0.5, "expected": "> 0.9", "ok": False}
    record = {"controls": {"planted_neuron": control, "same_language_p": control | {"ok": True}}}
    said = " Control failed: planted_neuron: 0.500, expected > 0.9."
    assert failed_controls(record) == said
