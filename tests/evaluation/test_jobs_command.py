"""``langsamp evaluate``: results on disk, a real kill in the middle, bad input in one line."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.evaluation import jobs, retrieval
from langsamp_jax.evaluation.model import load_model
from langsamp_jax.report.page import write_report
from langsamp_jax.training.export import export_run
from langsamp_jax.training.run import open_run

PIVOT = "qaa_Latn"


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """The run in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_run(open_run(run), folder)
    return folder


@pytest.fixture(scope="module")
def held_out(corpus) -> Path:
    return corpus / "held_out"


def arguments(task: str, model: object, data: object, *more: object) -> list[str]:
    return [*map(str, ("evaluate", task, "--model", model, "--data", data, *more))]


def result(file: Path) -> dict[str, Any]:
    """All but how long it took."""
    record = json.loads(file.read_bytes())
    assert record.pop("seconds") > 0
    return record


# Results


def test_results_of_a_run_are_in_its_folder(run, held_out, corpus, capsys):
    """And the report finds them there."""
    for task, more in (
        ("retrieval-bible", ["--pivot", PIVOT]),
        ("neutrality", ["--pivot", PIVOT, "--sentences", "30"]),
        ("pseudo-perplexity", ["--sentences", "2"]),
    ):
        assert main(arguments(task, run, held_out, *more)) == 0, capsys.readouterr().err
    names = {file.stem for file in held_out.glob("*.txt")}
    found = {file.stem: result(file) for file in (run / "evaluation").iterdir()}
    assert set(found) == {"retrieval-bible", "neutrality", "pseudo-perplexity"}
    for task, record in found.items():
        asked = {"task": task, "model": str(run), "step": 3, "data": str(held_out)}
        assert record.items() >= asked.items() and record["skipped"] == {}
    bible = found["retrieval-bible"]
    assert (bible["pivot"], bible["layer"], bible["metric"]) == (PIVOT, 2, "top10")
    assert {record["language"] for record in bible["languages"]} == names - {PIVOT}
    assert all(one["chance_top1"] == 1 / one["sentences"] for one in bible["languages"])
    assert bible["averages"]["all"]["languages"] == len(names) - 1
    assert bible["measures"]["all/top10"] == bible["averages"]["all"]["top10"]
    assert set(found["neutrality"]["languages"]) == names
    assert max(found["neutrality"]["sentences"]) == 30
    assert found["neutrality"]["num_layers"] == len(found["neutrality"]["mean"]["gap"]) == 4
    assert {one["language"] for one in found["pseudo-perplexity"]["languages"]} == names
    assert {one["sentences"] for one in found["pseudo-perplexity"]["languages"]} == {2}

    text = capsys.readouterr().out
    for shown in ("top-10", "chance@10", "non_latin", "gap centred", "bits a character"):
        assert shown in text
    page = write_report(run).read_text("utf-8")
    assert "retrieval-bible" in page and "neutrality-by-layer" in page


@pytest.mark.slow
def test_the_layer_of_retrieval(run, held_out, tmp_path, capsys):
    """The protocol's result stays; each layer's is the vectors' of that layer."""
    call = arguments("retrieval-bible", run, held_out, "--pivot", PIVOT)
    folder = run / "evaluation"
    for layer in ([], ["--layer", "protocol"], ["--layer", "0"], ["--layer", "last"]):
        assert main([*call, *layer]) == 0, capsys.readouterr().err
    names = ["retrieval-bible", "retrieval-bible-layer-0", "retrieval-bible-layer-last"]
    assert {*names} == {file.stem for file in folder.glob("retrieval-bible*")}
    results = [result(folder / f"{name}.json") for name in names]
    assert [record["layer"] for record in results] == [2, 0, 3]
    assert "layer 3" in capsys.readouterr().out.splitlines()[-1]
    model, lines = load_model(run), {}
    for name in (PIVOT, "qac_Latn"):
        lines[name] = (held_out / f"{name}.txt").read_text("utf-8").splitlines()
    both = [i for i in range(len(lines[PIVOT])) if all(text[i].strip() for text in lines.values())]
    for record in results:
        layer = record["layer"]
        one, other = (model.encode([t[i] for i in both], layer=layer) for t in lines.values())
        (found,) = (r for r in record["languages"] if r["language"] == "qac_Latn")
        assert found["top1"] == (retrieval.ranks(one, other) < 1).mean()
    assert len({str(record["measures"]) for record in results}) == 3
    page = write_report(run).read_text("utf-8")
    assert "SR-B, layer 0" in page and "SR-B, layer last" in page and "States of layer 3." in page


@pytest.mark.parametrize("layer", ["4", "99999999999999999999"])
def test_a_layer_that_there_is_not(layer, run, held_out, tmp_path, command_refused):
    call = arguments("retrieval-bible", run, held_out, "--output", tmp_path / "x.json")
    line = command_refused(*call, "--layer", layer)
    assert f"layer {layer}: {run} has the layers 0 (embeddings) to 3" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", ["-1", "middle", "2.0", "", "²"])
def test_a_layer_that_is_none(layer, run, held_out, capsys):
    call = arguments("retrieval-tatoeba", run, held_out, f"--layer={layer}")
    with pytest.raises(SystemExit) as error:
        main(call)
    assert error.value.code == 2
    assert "expected a whole number, last or protocol" in capsys.readouterr().err


def test_parts_of_another_layer_are_not_taken_up(run, held_out, tmp_path, command_refused):
    """Those of the protocol's are, from before there was a choice too."""
    output = tmp_path / "x.json"
    identity = open_run(run).id
    asked = {"task": "retrieval-bible", "model": identity, "step": 3, "data": str(held_out)}
    settings, part = {**asked, "pivot": PIVOT}, {"part": "qac_Latn", "result": {"top1": 0.25}}
    text = "".join(f"{json.dumps(line)}\n" for line in (settings, part))
    (tmp_path / "x.json.parts").write_text(text)
    call = arguments("retrieval-bible", run, held_out, "--pivot", PIVOT, "--output", output)
    assert "(layer differ)" in command_refused(*call, "--layer", "1")
    with jobs.Journal(output, {**settings, "layer": None}) as journal:
        assert journal.part("qac_Latn", dict) == {"top1": 0.25}


def test_an_export_gives_the_same(run, folder, held_out, tmp_path):
    records = []
    for model in (run, folder):
        output = tmp_path / "not" / "yet" / f"{len(records)}.json"
        call = arguments("retrieval-bible", model, held_out, "--pivot", PIVOT, "--output", output)
        assert main(call) == 0
        records.append(result(output))
    ours, theirs = records
    assert (ours["step"], theirs["step"], theirs["model"]) == (3, None, str(folder))
    for one, other in zip(ours["languages"], theirs["languages"], strict=True):
        assert one == other


def test_languages_that_cannot_be_read_are_named(folder, tmp_path, write_corpus, capsys):
    """The averages say over how many languages they are."""
    lines = [f"{word} x" for word in "abcdefgh"]
    good = {name: lines for name in ("deu_Latn", "eng_Latn", "rus_Cyrl")}
    data = write_corpus(tmp_path / "data", **good, fra_Latn=lines[:3], nld_Latn=[""] * 8)
    (data / "ita_Latn.txt").write_bytes(b"\xff\n" * 8)
    output = tmp_path / "result.json"
    call = arguments("retrieval-bible", folder, data, "--output", output)
    assert main(call) == 0, capsys.readouterr().err
    record, text = result(output), capsys.readouterr().out
    assert set(record["skipped"]) == {"fra_Latn", "ita_Latn", "nld_Latn"}
    assert "skipped fra_Latn: " in text and "not UTF-8" in text
    counts = {group: means["languages"] for group, means in record["averages"].items()}
    assert counts == {"all": 2, "head": 2, "latin": 1, "non_latin": 1, "published": 2}
    assert record["averages"]["all"]["top1"] == 1


def test_pairs_of_files(folder, tmp_path, capsys):
    data = tmp_path / "tatoeba"
    data.mkdir()
    for code, text in (("deu", "eins\nzwei\n"), ("fra", "un\n"), ("eng", "one\ntwo\n")):
        if code != "eng":
            (data / f"tatoeba.{code}-eng.{code}").write_text(text)
            (data / f"tatoeba.{code}-eng.eng").write_text("one\ntwo\n")
    output = tmp_path / "result.json"
    call = arguments("retrieval-tatoeba", folder, data, "--output", output)
    assert main(call) == 0, capsys.readouterr().err
    record = result(output)
    assert [one["language"] for one in record["languages"]] == ["deu_Latn"]
    assert "has 1 lines" in record["skipped"]["fra"]


def test_a_language_without_vectors_is_skipped(run, tmp_path, write_corpus, capsys):
    data = write_corpus(tmp_path / "data", qaa_Latn=["a b"], qsx_Latn=["a b"], qab_Latn=["", ""])
    output = tmp_path / "result.json"
    call = arguments("pseudo-perplexity", run, data, "--output", output)
    assert main(call) == 0, capsys.readouterr().err
    record = result(output)
    assert [one["language"] for one in record["languages"]] == ["qaa_Latn"]
    assert "the model has no language 'qsx'" in record["skipped"]["qsx_Latn"]
    assert record["skipped"]["qab_Latn"] == "no tokens"


# A kill


@pytest.fixture(scope="module")
def many(held_out, tmp_path_factory) -> Path:
    """100 languages: the held-out sentences, again and again, under other names."""
    folder = tmp_path_factory.mktemp("many")
    files = itertools.cycle(sorted(held_out.glob("*.txt")))
    codes = (f"q{a}{b}" for a in "abcd" for b in "abcdefghijklmnopqrstuvwxy")
    for code, file in zip(codes, files, strict=False):
        shutil.copy(file, folder / f"{code}_Latn.txt")
    assert (folder / f"{PIVOT}.txt").exists()
    return folder


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was(folder, many, tmp_path, monkeypatch, capsys):
    output, whole = tmp_path / "killed.json", tmp_path / "whole.json"
    parts = tmp_path / "killed.json.parts"
    call = arguments("retrieval-bible", folder, many, "--pivot", PIVOT, "--output", output)
    process = subprocess.Popen(
        [sys.executable, "-m", "langsamp_jax", *call],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not (parts.exists() and parts.read_bytes().count(b"\n") > 2):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    assert not output.exists()
    settings, *finished = parts.read_text().splitlines()
    assert json.loads(settings)["task"] == "retrieval-bible"
    assert 1 < len(finished) < 99

    assert main([*call, "--pivot", "qab_Latn"]) == 2
    taken_over, line = capsys.readouterr().err.splitlines()
    assert taken_over.endswith("which has ended: taken over")
    assert f"{parts} holds parts of another evaluation (pivot differ)" in line

    encoded = []

    def counting(trained, layers):
        encode = encoder(trained, layers)
        return lambda lines, name: encoded.append(name) or encode(lines, name)

    encoder = retrieval.sentence_encoder
    monkeypatch.setattr(retrieval, "sentence_encoder", counting)
    assert main(call) == 0, capsys.readouterr().err
    before = {json.loads(line)["part"] for line in finished}
    names = [file.stem for file in sorted(many.glob("*.txt"))]
    assert encoded == [PIVOT, *(name for name in names if name not in before | {PIVOT})]
    assert main([*call[:-1], str(whole)]) == 0
    assert result(output) == result(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed.json", "whole.json"]


# Bad input


def test_where_the_result_goes(run, folder, held_out, tmp_path, command_refused):
    call = arguments("retrieval-bible", run, held_out, "--pivot", PIVOT)
    line = command_refused(*call, "--output", str(tmp_path))
    assert f"--output {tmp_path} is a folder; name the .json file to write" in line
    line = command_refused(*arguments("retrieval-bible", folder, held_out, "--pivot", PIVOT))
    assert f"{folder} is no run; say where the result goes with --output" in line
    for more in ([], ["--output", tmp_path / "x.json"]):
        call = arguments("retrieval-bible", tmp_path / "runn", held_out, "--pivot", PIVOT, *more)
        assert f"{tmp_path / 'runn'} is neither a run" in command_refused(*call)
    call = arguments("pseudo-perplexity", folder, held_out, "--output", tmp_path / "x.json")
    assert "has no steps; leave --step" in command_refused(*call, "--step", "3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["retrieval-bible", "neutrality"])
def test_what_is_not_aligned(task, folder, held_out, tmp_path, write_corpus, command_refused):
    more = ["--output", str(tmp_path / "x.json")]
    line = command_refused(*arguments(task, folder, held_out, *more))
    assert f"{held_out} has no eng_Latn.txt, which the other files are aligned with" in line
    line = command_refused(*arguments(task, folder, tmp_path / "none", *more))
    assert "not found" in line
    data = write_corpus(tmp_path / "data", eng_Latn=["a", "b"], deu_Latn=["a"])
    assert "aligned with eng_Latn" in command_refused(*arguments(task, folder, data, *more))
    assert not (tmp_path / "x.json").exists()


def test_no_pair_with_the_pivot(folder, held_out, tmp_path, command_refused):
    more = ["--output", str(tmp_path / "x.json")]
    line = command_refused(*arguments("retrieval-tatoeba", folder, held_out, *more))
    assert "has no pairs with eng_Latn: expected files such as tatoeba.deu-eng.deu" in line


def test_nothing_in_common(folder, tmp_path, write_corpus, command_refused):
    data = write_corpus(tmp_path / "data", eng_Latn=["a", "b", ""], deu_Latn=["", "b", "c"])
    call = arguments("neutrality", folder, data, "--output", tmp_path / "x.json")
    assert "no two languages have two lines in common" in command_refused(*call)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_no_language_can_be_evaluated(
    run, tmp_path, write_corpus, store_path, make_run, command_refused
):
    """Of a pivot that the encoder cannot read, that is said at once."""
    data = write_corpus(tmp_path / "data", qsx_Latn=["a"], qsy_Latn=["b"])
    more = ["--output", tmp_path / "x.json"]
    line = command_refused(*arguments("pseudo-perplexity", run, data, *more))
    assert "no language could be evaluated; qsx_Latn: the model has no language 'qsx'" in line
    model = make_run(store_path, placement="input").path
    call = arguments("retrieval-bible", model, data, "--pivot", "qsx_Latn", *more)
    line = command_refused(*call)
    assert line.startswith("langsamp: the model has no language 'qsx'")
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("count", ["0", "-3", "many"])
@pytest.mark.parametrize("task", ["neutrality", "pseudo-perplexity"])
def test_a_number_of_sentences_that_is_none(task, count, run, held_out, command_refused):
    call = arguments(task, run, held_out, f"--sentences={count}")
    assert "expected a whole number above 0" in command_refused(*call)


# Edited models


@pytest.mark.slow
def test_an_edited_model_is_evaluated(run, store_path, held_out, tmp_path, capsys):
    """By a task that reads a run, and one that reads its encoder; whole blocks, and means."""
    values = {}
    for name, more in {
        "whole": [],
        "shorter": ["--edit", "block@1", "ffn@0"],
        "mean": ["--edit", "attention@all=mean", "--reference", held_out],
    }.items():
        output = tmp_path / f"{name}.json"
        assert main([*arguments("mlm", run, store_path, "--output", output), *map(str, more)]) == 0
        record = result(output)
        assert record.get("edits", []) == [e for e in ("block@1=drop", "ffn@0=zero",
                                                       "attention@all=mean")
                                           if e.split("=")[0] in more or e in more]  # fmt: skip
        values[name] = record["loss"]
    assert len({*values.values()}) == 3
    output = tmp_path / "retrieval.json"
    call = arguments("retrieval-bible", run, held_out, "--pivot", PIVOT, "--output", output)
    assert main([*call, "--layer", "last", "--edit", "block@0-1"]) == 0
    assert result(output)["layer"] == 1


@pytest.mark.parametrize(
    "more, message",
    [
        (["--edit", "ffn@0"], "--edit needs --output FILE.json"),
        (["--edit", "ffn@7", "--output", "x.json"], "ffn@7=zero: the layers are 0 to 2"),
        (["--edit", "ffn", "--output", "x.json"], "edit ffn: expected a form like"),
        (["--edit", "ffn@0=mean", "--output", "x.json"], "--reference CORPUS"),
    ],
)
def test_an_edit_that_cannot_be_made(more, message, run, store_path, command_refused):
    assert message in command_refused(*arguments("mlm", run, store_path, *more))
