"""A task at many steps: each result that of the step alone, one compilation, no wrong step."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from langsamp_jax.cli.evaluation import measures_of
from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.evaluation import jobs, loss
from langsamp_jax.evaluation.series import RunSteps, off_curve, show_series
from langsamp_jax.report.compare import compare
from langsamp_jax.report.page import write_report
from langsamp_jax.training.export import export_run
from langsamp_jax.training.loop import train
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.run import open_run

PIVOT = ["--pivot", "qaa_Latn"]
STEPS = [0, 1, 2, 4, 6]


@pytest.fixture(scope="module")
def trained(store_path, tiny_configs, tmp_path_factory) -> Path:
    """6 steps with snapshots of powers, validated at 2, 4 and 6; the first update has rate 0."""
    fields = {"num_steps": 6, "eval_every": 2, "checkpoint_every": 6, "snapshots": "powers"}
    rate = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    configs = dataclasses.replace(tiny_configs(**fields), optimizer=rate)
    return train(Store(store_path), tmp_path_factory.mktemp("trained") / "run", configs).path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """One that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("exported")
    steps = {step: folder / f"at{step}" for step in (0, 2, 6)}
    for step, path in steps.items():
        export_run(open_run(trained), path, step)
    return steps


def evaluate(task: str, model: object, data: object, *more: object) -> list[str]:
    return [*map(str, ("evaluate", task, "--model", model, "--data", data, *more))]


def result(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes())


@pytest.mark.slow
def test_the_series_is_what_each_step_is_alone(trained, store_path, corpus, tmp_path, capsys):
    """To the last digit, for a loss and for vectors."""
    for task, data, more in (
        ("mlm", store_path, []),
        ("retrieval-bible", corpus / "held_out", PIVOT),
    ):
        call = evaluate(task, trained, data, *more)
        capsys.readouterr()
        assert main([*call, "--step", "all"]) == 0, capsys.readouterr().err
        shown = capsys.readouterr().out.splitlines()
        record = result(trained / "evaluation" / f"{task}-steps.json")
        assert record["steps"] == [r["step"] for r in record["records"]] == STEPS
        assert record["measures"] == record["records"][-1]["measures"]
        assert [int(line.split()[0]) for line in shown[2:7]] == STEPS
        for at in record["records"]:
            alone = tmp_path / f"{task}-{at['step']}.json"
            assert main([*call, "--step", str(at["step"]), "--output", str(alone)]) == 0
            single = result(alone)
            for name in ("task", "model", "data", "seconds", "environment"):
                del single[name]
            assert {name: at[name] for name in single} == single
    digests = [at["digest"] for at in record["records"]]
    assert digests[0] == digests[1] and len({*digests}) == 4  # the first update had rate 0
    metrics = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    curve = {line["step"]: line["eval/loss"] for line in metrics if "eval/loss" in line}
    for at in record["records"]:
        assert at["validation_loss"] == pytest.approx(curve.get(at["step"], at["validation_loss"]))


@pytest.mark.slow
def test_it_is_read_by_the_report_and_by_compare(run, corpus, tmp_path, capsys):
    shutil.rmtree(run / "evaluation", ignore_errors=True)  # of the tests before
    asked = f"langsamp evaluate mlm --model {run} --data STORE --step all"
    assert asked in write_report(run).read_text("utf-8")
    call = evaluate("retrieval-bible", run, corpus / "held_out", *PIVOT)
    assert main([*call, "--step", "2", "6"]) == 0, capsys.readouterr().err
    page = write_report(run).read_text("utf-8")
    assert "Over the training" in page and asked not in page
    assert "retrieval-bible-steps" in page
    other = Path(shutil.copytree(run, tmp_path / "other"))
    record = result(other / "run.json")
    record["settings"]["optimizer.learning_rate"] = 1.0
    (other / "run.json").write_text(json.dumps(record))
    measures = {m["measure"]: m for m in compare([run, other], measures_of)["measures"]}
    last = result(run / "evaluation" / "retrieval-bible-steps.json")["measures"]
    assert measures["retrieval-bible-steps/all/top1"]["mean"] == last["all/top1"]


@pytest.mark.parametrize("task", ["mlm", "neutrality", "pseudo-perplexity", "retrieval-bible"])
@pytest.mark.slow
def test_the_second_step_compiles_nothing(
    task, trained, store_path, corpus, tmp_path, capsys, monkeypatch
):
    data = store_path if task == "mlm" else corpus / "held_out"
    more = {"neutrality": [*PIVOT, "--sentences", "20"], "pseudo-perplexity": ["--sentences", "1"]}
    more |= {"retrieval-bible": PIVOT}
    assert compiled_at_steps(
        evaluate(task, trained, data, *more.get(task, []), "--output", tmp_path / "x.json"),
        monkeypatch,
    )[1:] == [0, 0]


def compiled_at_steps(call: list[str], monkeypatch) -> list[int]:
    """How often something was compiled, or read from the cache of it, for steps 2, 4 and 6."""
    counts, opened = [], RunSteps.open

    def opening(self, step):
        model = opened(self, step)
        counts.append(0)
        return model

    def event(name: str, duration: float, **_: object) -> None:
        if name == "/jax/core/compile/backend_compile_duration" and counts:
            counts[-1] += 1

    monkeypatch.setattr(RunSteps, "open", opening)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(event)
    try:
        assert main([*call, "--step", "2", "4", "6"]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(event)
    assert len(counts) == 3 and counts[0] > 0
    return counts


@pytest.mark.slow
def test_fine_tuning_compiles_once(trained, tmp_path, write_files, capsys, monkeypatch):
    topics = ["science/technology", "travel", "politics", "sports"]
    lines = ["index_id\tcategory\ttext"]
    lines += [f"{n}\t{topics[n % 4]}\tbaka {'ti' * (n % 4)} {n % 7}" for n in range(16)]
    text = "\n".join(lines) + "\n"
    names = [f"{name}/{part}.tsv" for name in ("qaa_Latn",) for part in ("train", "dev", "test")]
    data = write_files(tmp_path / "sib200", dict.fromkeys(names, text))
    call = evaluate("sib200", trained, data, "--source", "qaa_Latn")
    call += ["--gin.finetune.num_epochs=1", "--gin.finetune.num_seeds=1"]
    counts = compiled_at_steps([*call, "--output", str(tmp_path / "x.json")], monkeypatch)
    assert counts[1:] == [0, 0]


@pytest.mark.slow
def test_it_goes_on_where_it_was_interrupted(trained, store_path, tmp_path, capsys, monkeypatch):
    output, measured = tmp_path / "x.json", []
    call = evaluate("mlm", trained, store_path, "--step", "all", "--output", output)
    evaluated = loss.evaluate

    def interrupted(model, *arguments):
        measured.append(model.step)
        if measured == [0, 1, 2]:
            raise KeyboardInterrupt
        return evaluated(model, *arguments)

    monkeypatch.setattr(loss, "evaluate", interrupted)
    assert main(call) == 130 and (tmp_path / "x.json.parts").exists()
    assert main(call) == 0, capsys.readouterr().err
    assert measured == [0, 1, 2, 2, 4, 6]
    assert [at["step"] for at in result(output)["records"]] == STEPS
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_parts_of_a_step_are_its_own(tmp_path):
    with jobs.Journal(tmp_path / "x.json", {}) as journal:
        for step in (0, 1):
            inner = journal.under(f"step {step}")
            assert inner.part("qaa", lambda step=step: step) == step
            assert inner.under("seed").part("qaa", lambda step=step: -step) == -step
        assert journal.part("qaa", lambda: 7) == 7
    with jobs.Journal(tmp_path / "x.json", {}) as journal:
        assert journal.under("step 1").part("qaa", lambda: 5) == 1


@pytest.mark.slow
def test_folders_as_steps(trained, folders, corpus, tmp_path, capsys):
    data, output = corpus / "held_out", tmp_path / "x.json"
    call = ["evaluate", "retrieval-bible", "--data", data, *PIVOT, "--output", output]
    call += ["--model", folders[6], folders[2], "--steps", 6, 2]
    assert main([*map(str, call)]) == 0, capsys.readouterr().err
    assert "no step was compared with a loss curve" in capsys.readouterr().out
    ours = tmp_path / "run.json"
    call = evaluate("retrieval-bible", trained, data, *PIVOT, "--step", 2, 6, "--output", ours)
    assert main(call) == 0, capsys.readouterr().err
    for theirs, own in zip(result(output)["records"], result(ours)["records"], strict=True):
        assert theirs["step"] == own["step"]
        assert theirs["measures"] == pytest.approx(own["measures"])


def test_a_result_over_steps_says_whether_it_was_compared_with_a_curve():
    protocol = SimpleNamespace(over_steps=None, show=lambda record: "a table")
    said = "no step was compared with a loss curve: none is known, or not its store"
    shown = show_series({"validation_loss": [None, None]}, protocol)
    assert shown.splitlines() == ["a table", said]
    assert show_series({"validation_loss": [None, 2.0]}, protocol) == "a table"


# What is no series


def test_two_steps_with_the_same_parameters(run, store_path, command_refused):
    shutil.rmtree(run / "snapshots" / "1")
    shutil.copytree(run / "snapshots" / "2", run / "snapshots" / "1")
    call = evaluate("mlm", run, store_path, "--step", "all", "--output", run.parent / "x.json")
    assert f"steps 1 and 2 of {run} have the same parameters" in command_refused(*call)


def test_a_step_that_is_off_the_curve(run, store_path, corpus, tmp_path, command_refused):
    """Whatever the task: the loss is measured on the store that the run was trained on."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "eval/loss" in line:  # a curve that has fallen far
            line["eval/loss"] /= 2
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = evaluate("retrieval-bible", run, corpus / "held_out", *PIVOT, "--step", 1, 4)
    line = command_refused(*call, "--output", tmp_path / "x.json")
    assert f"step 4 of {run} has the validation loss" in line and "off the curve" in line


def test_steps_that_are_not_there(run, store_path, folders, command_refused):
    call = evaluate("mlm", run, store_path)
    line = command_refused(*call, "--step", "0", "3", "5")
    there = f"checkpoints of 6 and snapshots of {', '.join(map(str, STEPS))}"
    assert f"{run} has no step 3, 5; there are " in line and "snapshots of 0, 1, 2, 4, 6" in line
    assert there.partition(" and ")[2] in line
    shutil.rmtree(run / "snapshots")
    line = command_refused(*call, "--step", "all")
    assert f"{run} has no snapshots: train with --gin.train.snapshots=powers; there are " in line
    assert "6 and snapshots of none, which --step can name" in line
    assert "expected a whole number, or all" in command_refused(*call, "--step", "some")
    call = evaluate("retrieval-bible", folders[2], store_path, "--output", run / "x.json")
    assert "--model DIR1 DIR2 --steps" in command_refused(*call, "--step", "all")


def test_folders_that_are_no_series(folders, trained, corpus, tmp_path, command_refused):
    def refused(models: list[Path], *more: object) -> str:
        call = ["evaluate", "geometry", "--model", *models, "--output", tmp_path / "x.json"]
        return command_refused(*call, *more)

    two = [folders[0], folders[2]]
    assert "--model names 2 folders, --steps 1:" in refused(two, "--steps", "1")
    assert "--model names 2 folders, --steps none:" in refused(two)
    assert "--model names 2 folders, --steps 1, 1:" in refused(two, "--steps", "1", "1")
    assert "--step cannot be given with several --model" in refused(two, "--step", "1")
    assert f"{trained} is a run" in refused([folders[0], trained], "--steps", "1", "2")
    call = ["evaluate", "pos", "--model", *two, "--data", corpus, "--steps", "1", "2"]
    assert "say where the result goes with --output" in command_refused(*call)


def test_models_of_different_form(folders, tokenizer, tmp_path, corpus, command_refused):
    smaller = Path(shutil.copytree(folders[2], tmp_path / "smaller"))
    config = json.loads((smaller / "config.json").read_text())
    (smaller / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    call = ["evaluate", "retrieval-bible", "--model", folders[0], smaller, "--steps", 0, 2]
    call += ["--data", corpus / "held_out", *PIVOT, "--output", tmp_path / "x.json"]
    line = command_refused(*call)
    assert f"{folders[0]} and {smaller} are no series: layer_norm_eps is " in line


# The curve


CURVE = [100, 200, 300, 400, 500], [6.0, 5.0, 4.5, 4.3, 4.2]


@pytest.mark.parametrize(
    ("step", "value", "off"),
    [
        (100, 6.0, False),  # a point of it
        (150, 5.9, False),  # between two
        (150, 4.9, False),  # a bump
        (300, 9.0, True),
        (450, 1.0, True),
        (0, 12.0, False),  # in front of it
        (512, 1.0, False),  # and behind it nothing is known
        (400, float("nan"), True),
    ],
)
def test_what_is_off_the_curve(step, value, off):
    assert off_curve([step], [value], *CURVE) == [step] * off


def test_a_noisy_curve_allows_more():
    steps, rng = np.arange(100, 2100, 100), np.random.default_rng(0)
    calm, noise = 4 - steps / 1e4, rng.normal(0, 0.3, len(steps))
    assert off_curve([1050], [4.9], steps, calm) == [1050]
    assert off_curve([1050], [4.9], steps, calm + noise) == []
    assert off_curve(steps, calm, steps, calm) == []


def test_where_the_store_of_a_run_is_not_reached_nothing_is_compared(run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"store_path": str(tmp_path / "gone")}))
    steps = RunSteps(run, None, tmp_path)
    assert steps.check(0, steps.open(0).params) == {}
    assert loss.own_store(open_run(run), None) is None
