"""``langsamp evaluate`` of tasks that fine-tune, and of the tables, from end to end."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.config import FineTuneConfig
from langsamp_jax.evaluation.datasets.tagging import UPOS
from langsamp_jax.evaluation.transfer import PROTOCOLS
from langsamp_jax.languages.published import LABELS

LANGUAGES = ("eng_Latn", "qaa_Latn", "qab_Latn", "xho_Latn")
SPLITS = {"train": 16, "dev": 8, "test": 12}
ONE_EPOCH = ("--gin.finetune.num_epochs=1", "--gin.finetune.num_seeds=1")
QUICK = (*ONE_EPOCH, "--gin.finetune.learning_rate=1e-3", "--gin.finetune.batch_size=8")


@pytest.fixture(scope="module")
def topics(words, tmp_path_factory) -> Path:
    """Aligned text whose first word tells the topic, in the layout of SIB-200."""
    folder, rng = tmp_path_factory.mktemp("topics"), np.random.default_rng(0)
    (folder / "text").mkdir()
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    labels = rng.integers(0, 7, len(splits))
    rows = [
        f"{line}\t{split}\t{LABELS['sib200'][label]}"
        for line, (split, label) in enumerate(zip(splits, labels, strict=True), 1)
    ]
    (folder / "labels.tsv").write_text("\n".join(["line\tsplit\tcategory", *rows]) + "\n")
    for name in LANGUAGES:
        lines = [" ".join([words[label], *rng.choice(words[7:], 2)]) for label in labels]
        (folder / "text" / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def tags(words, tmp_path_factory) -> Path:
    """Tagged words; xho_Latn has a tag that is none, zul_Latn no test set."""
    folder, rng = tmp_path_factory.mktemp("tags"), np.random.default_rng(0)

    def write(language: str, split: str, kinds: list[str]) -> None:
        sentences = [
            "\n".join(f"{words[i]}\t{kinds[i % len(kinds)]}" for i in rng.integers(0, 60, 5))
            for _ in range(8)
        ]
        (folder / language).mkdir(exist_ok=True)
        (folder / language / f"{split}.tsv").write_text("\n\n".join(sentences) + "\n", "utf-8")

    for split in SPLITS:
        write("eng_Latn", split, list(UPOS[:4]))
    write("qaa_Latn", "test", list(UPOS[:3]))
    write("xho_Latn", "test", ["THING"])
    write("zul_Latn", "train", list(UPOS[:4]))
    write("zul_Latn", "dev", list(UPOS[:4]))
    return folder


@pytest.fixture(scope="module")
def plain_run(make_run, store_path) -> Path:
    """Without tables."""
    return make_run(store_path, placement="none").path


def evaluate(task: str, model: Path, *arguments: object) -> int:
    return main(["evaluate", task, "--model", str(model), *map(str, arguments)])


@pytest.fixture
def evaluate_refused(command_refused) -> Callable[..., str]:
    """``evaluate_refused(task, model, *arguments)``: the one line, not one of argparse's."""

    def evaluate_refused(task: str, model: Path, *arguments: object) -> str:
        line = command_refused("evaluate", task, "--model", model, *arguments)
        assert line.startswith("langsamp: "), line
        return line

    return evaluate_refused


# Fine-tuning


@pytest.mark.slow
def test_topics_from_end_to_end(topics, run, capsys):
    assert evaluate("sib200", run, "--data", topics, *QUICK) == 0
    shown = capsys.readouterr()
    assert "seed 0, epoch 1: loss" in shown.err
    record = json.loads((run / "evaluation" / "sib200.json").read_text())
    assert [each["language"] for each in record["languages"]] == list(LANGUAGES)
    assert (record["task"], record["source"], record["metric"]) == (
        "sib200",
        "eng_Latn",
        "macro_f1",
    )
    assert (record["model"], record["step"], record["skipped"]) == (str(run), 3, {})
    for each in record["languages"]:
        assert each["examples"] == SPLITS["test"] and 0 <= each["macro_f1"] <= 1
        row = next(line for line in shown.out.splitlines() if line.startswith(each["language"]))
        assert f"{each['macro_f1']:.3f}" in row and f"{each['accuracy']:.3f}" in row
    average = next(line for line in shown.out.splitlines() if line.startswith("all"))
    assert f"{record['averages']['all']['macro_f1']:.3f}" in average
    assert not (run / "evaluation" / "sib200.json.parts").exists()


@pytest.mark.slow
def test_topics_as_they_are_distributed(words, run, tmp_path):
    """Taxi1500's form: a file of a language and split."""
    for name, split in (("eng", "train"), ("eng", "dev"), ("eng", "test"), ("deu", "test")):
        rows = [f"{i}\t{LABELS['taxi1500'][i % 6]}\t{words[i % 6]} {words[9]}" for i in range(16)]
        (tmp_path / f"{name}_{split}.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    output = tmp_path / "taxi1500.json"
    assert evaluate("taxi1500", run, "--data", tmp_path, "--output", output, *QUICK) == 0
    record = json.loads(output.read_text())
    assert [each["language"] for each in record["languages"]] == ["deu_Latn", "eng_Latn"]
    assert record["protocol"]["max_length"] == 100


@pytest.mark.slow
def test_parts_of_speech_from_end_to_end(tags, run, tmp_path, capsys):
    output = tmp_path / "pos.json"
    assert evaluate("pos", run, "--data", tags, "--output", output, *QUICK) == 0
    record = json.loads(output.read_text())
    assert [each["language"] for each in record["languages"]] == ["eng_Latn", "qaa_Latn"]
    for each in record["languages"]:
        assert each.keys() >= {"tag_f1", "accuracy", "truncated"} and each["tag_f1_std"] is None
    assert record["skipped"].keys() == {"xho_Latn", "zul_Latn"}
    assert "'THING' is none of" in record["skipped"]["xho_Latn"]
    assert "xho_Latn/test.tsv, line 1" in record["skipped"]["xho_Latn"]
    assert "skipped zul_Latn: " in capsys.readouterr().out


@pytest.mark.slow
def test_named_entities_from_end_to_end(tags, run, tmp_path):
    data, output = tmp_path / "data", tmp_path / "ner.json"
    shutil.copytree(tags, data)
    kinds = dict(zip(UPOS[:4], ("O", "B-PER", "B-LOC", "I-LOC"), strict=True))
    for file in data.glob("*/*.tsv"):
        text = file.read_text("utf-8")
        for tag, entity in kinds.items():
            text = text.replace(f"\t{tag}\n", f"\t{entity}\n")
        file.write_text(text.replace("THING", "B-TIME"), "utf-8")
    assert evaluate("ner", run, "--data", data, "--output", output, *QUICK) == 0
    record = json.loads(output.read_text())
    assert [each["language"] for each in record["languages"]] == ["eng_Latn", "qaa_Latn"]
    assert record["languages"][0].keys() >= {"entity_f1", "precision", "recall"}
    assert "'B-TIME' is none of O, B-LOC, B-PER, I-LOC" in record["skipped"]["xho_Latn"]


def test_bad_calls_are_one_line(topics, tags, run, tmp_path, evaluate_refused):
    data = ("--data", topics, "--output", tmp_path / "out.json")
    line = evaluate_refused("sib200", run, *data, "--gin.finetune.num_epochs=0")
    assert "finetune.num_epochs = 0: expected a number above 0, or None" in line
    line = evaluate_refused("sib200", run, *data, "--gin.finetune.num_epoch=1")
    assert "finetune has no 'num_epoch'; did you mean num_epochs?" in line
    line = evaluate_refused("sib200", run, *data, "--gin.fintune.num_epochs=1")
    assert "no configurable 'fintune'; did you mean finetune?" in line
    line = evaluate_refused("sib200", run, *data, "--source", "deu_Latn")
    assert f"{topics / 'text'} has no deu_Latn.txt" in line
    line = evaluate_refused("pos", run, "--data", tags, "--source", "qaa_Latn")
    assert f"{tags} has no training data of qaa_Latn, as there is of eng_Latn, zul_Latn" in line
    arguments = ("--gin.finetune.batch_size=5", "--gin.finetune.accumulation=published")
    line = evaluate_refused("sib200", run, *data, *arguments)
    assert "finetune.batch_size = 5: expected a multiple of 2" in line
    assert not (tmp_path / "out.json").exists()


# What can be set


def test_a_config_changes_what_it_names():
    sib200 = PROTOCOLS["sib200"]
    assert sib200.changed(FineTuneConfig()) == sib200
    config = FineTuneConfig(learning_rate=1e-3, num_epochs=2, accumulation="published")
    changed = sib200.changed(config)
    expected = dataclasses.replace(sib200, learning_rate=1e-3, num_epochs=2, published_defect=True)
    assert changed == expected
    assert not PROTOCOLS["ner"].changed(config).published_defect  # its loop does as it says


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"num_epochs": 0}, "finetune.num_epochs = 0: expected a number above 0, or None"),
        ({"learning_rate": -1.0}, "finetune.learning_rate = -1.0: expected a number above 0"),
        ({"max_length": 2}, "finetune.max_length = 2: expected room for a piece"),
        ({"num_seeds": 1.5}, "finetune.num_seeds = 1.5: expected a whole number or None"),
        ({"accumulation": "none"}, "expected one of 'mended', 'published'"),
        (
            {"batch_size": 5, "accumulation": "published"},
            "batch_size = 5: expected a multiple of 2",
        ),
    ],
)
def test_bad_configs_are_refused(fields, line):
    with pytest.raises(UserError) as refused:
        PROTOCOLS["sib200"].changed(FineTuneConfig(**fields))
    assert line in str(refused.value)


# Killed


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_the_second_seed(topics, run, tmp_path, capsys):
    two = ("--gin.finetune.num_epochs=40", "--gin.finetune.num_seeds=2", *QUICK[2:])
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    parts = tmp_path / "killed.json.parts"
    arguments = ["evaluate", "sib200", "--model", run, "--data", topics, *two, "--output"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-m", "langsamp_jax", *map(str, [*arguments, killed])]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (
            parts.exists() and parts.read_bytes().count(b"\n") > 1
        ):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    assert not killed.exists()
    assert main(list(map(str, [*arguments, whole]))) == 0
    assert "seed 0, epoch 40" in capsys.readouterr().err
    other = [*arguments, killed, "--gin.finetune.batch_size=4"]
    assert main(list(map(str, other))) == 2
    assert "parts of another evaluation (batch_size differ)" in capsys.readouterr().err
    assert main(list(map(str, [*arguments, killed]))) == 0
    said = capsys.readouterr().err
    assert "seed 0" not in said and "seed 1, epoch 1:" in said
    assert not parts.exists()
    one, other = (json.loads(file.read_text()) for file in (whole, killed))
    assert [seed["seed"] for seed in other["seeds"]] == [0, 1]
    assert {**other, "seconds": None} == {**one, "seconds": None}


# Donors and geometry


@pytest.mark.slow
def test_donors_from_end_to_end(topics, run, tmp_path, capsys):
    output = tmp_path / "donors.json"
    names = ("--donors", "qaa_Latn", "qab_Latn", "deu_Latn")
    assert evaluate("donors", run, "--data", topics, "--output", output, *names, *QUICK) == 0
    record = json.loads(output.read_text())
    assert record["donors"] == ["eng_Latn", "qaa_Latn", "qab_Latn"]
    assert record["targets"] == list(LANGUAGES)
    assert np.array(record["scores"], float).shape == (4, 3)
    assert (record["on"], record["metric"], record["pivot"]) == ("sib200", "macro_f1", "eng_Latn")
    assert list(record["skipped"]) == ["deu_Latn"]
    choices = {each["choice"]: each for each in record["choices"]}
    tables = {"language vectors", "language + script vectors"}
    assert choices.keys() == {*tables, "size", "random", "same script", "English", "oracle"}
    for other in ("English", "random"):
        assert choices["oracle"]["against"][other]["difference"] >= 0
    assert choices["English"]["chosen"] == dict.fromkeys(LANGUAGES[1:], "eng_Latn")
    assert choices["language vectors"]["chosen"] == {"qaa_Latn": "qab_Latn", "qab_Latn": "qaa_Latn"}
    shown = capsys.readouterr().out
    assert all(name in shown for name in choices) and "skipped deu_Latn: " in shown


@pytest.mark.slow
def test_donors_without_what_they_need_are_one_line(
    topics, run, plain_run, tmp_path, evaluate_refused
):
    data = ("--data", topics, "--output")
    line = evaluate_refused("donors", plain_run, *data, tmp_path / "plain.json")
    assert f"{plain_run} has no language and script vectors" in line
    pivot = (tmp_path / "pivot.json", "--pivot", "deu_Latn", "--donors", "qaa_Latn")
    line = evaluate_refused("donors", run, *data, *pivot)
    assert "has no deu_Latn.txt" in line


@pytest.mark.slow
def test_geometry_from_end_to_end(run, plain_run, capsys, evaluate_refused):
    assert evaluate("geometry", run) == 0
    record = json.loads((run / "evaluation" / "geometry.json").read_text())
    names = record["tables"]["language"]["names"]
    assert len(names) == 5 and set(names) > {"qaa", "qab"}
    assert len(record["tables"]["language"]["coordinates"]) == 5
    shown = capsys.readouterr().out
    assert "5 language vectors; two components explain" in shown
    line = evaluate_refused("geometry", plain_run)
    assert f"{plain_run} has no language and script vectors" in line
