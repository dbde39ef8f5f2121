"""Drops are those of models edited by hand, and what must be nothing is nothing."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from langsamp_jax.analysis import ablation, ablation_tasks
from langsamp_jax.analysis.ablation import (
    correlations,
    drop_interval,
    relative_drop,
    removal_orders,
    removals,
)
from langsamp_jax.analysis.ablation_tasks import Scores
from langsamp_jax.analysis.influence import influences
from langsamp_jax.cli import evaluation as cli
from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.evaluation.loss import masked_lm_measure
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.edits import apply_edits, parse_edit
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.run import open_run

BLOCK = "block", "drop"
CONFIG = ModelConfig(num_hidden_layers=3, num_attention_heads=2, hidden_size=32)


@pytest.fixture(scope="module")
def measured(run, store_path) -> dict:
    """All parts of a random model, by zero."""
    call = ["evaluate", "ablation", "--on", "mlm", "--model", run, "--data", store_path]
    assert main([*map(str, call), "--mode", "zero", "--parts", *ablation.PARTS]) == 0
    return json.loads((run / "evaluation" / "ablation.json").read_bytes())


@pytest.fixture(scope="module")
def far_chance(run, store_path) -> dict:
    """Some parts of the same model, where three times the unigram loss is said to be chance."""
    baseline, output = ablation_tasks.unigram_baseline, run.parent / "far.json"
    call = ["evaluate", "ablation", "--on", "mlm", "--model", run, "--data", store_path]
    call += ["--mode", "zero", "--parts", "attention", "norm", "--output", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_tasks, "unigram_baseline", lambda *known: 3 * baseline(*known))
        assert main([*map(str, call)]) == 0
    return json.loads(output.read_bytes())


@pytest.mark.slow
def test_every_change_is_that_of_the_loss_of_the_edited_model(measured, run, store_path):
    trained, store = open_run(run), Store(store_path)
    _, params = restore_params(trained)
    whole = masked_lm_measure(trained, model_of(trained), store)(params)
    assert measured["value"] == pytest.approx(whole["loss"], rel=1e-6)
    assert measured["chance"] == pytest.approx(whole["unigram_loss"], rel=1e-6)
    chosen = {"attention@1=zero", "head@2.3=zero", "block@0", "norm@all", "language=zero"}
    drops = {" ".join(d["edits"]): d for d in measured["drops"]}
    for text in chosen:
        model, edited = apply_edits([parse_edit(text)], model_of(trained), params, {})
        other = masked_lm_measure(trained, model, store)(edited)
        assert drops[text]["value"] == pytest.approx(other["loss"], rel=1e-6)
        assert drops[text]["change"] == pytest.approx(other["loss"] - whole["loss"], abs=1e-5)
        by_language = {each["language"]: each["loss"] for each in other["languages"]}
        assert drops[text]["languages"] == pytest.approx(by_language, rel=1e-5)


@pytest.mark.slow
def test_a_model_that_is_worse_than_chance_has_no_drops_and_it_is_said_why(measured):
    why = f"loss {measured['value']:.3f}, at chance {measured['chance']:.3f}"
    assert measured["value"] > measured["chance"] and why in measured["no_drop"]
    assert all(d["drop"] is d["low"] is d["high"] is None for d in measured["drops"])
    assert measured["measures"] == measured["correlations"] == {}
    text = ablation.show(measured)
    assert why in text and f"{measured['drops'][0]['change']:+.3f}" in text


@pytest.mark.slow
def test_drops_are_changes_relative_to_what_the_model_knows(far_chance):
    assert far_chance["no_drop"] is None and far_chance["drops"]
    for d in far_chance["drops"]:
        expected = d["change"] / (far_chance["chance"] - far_chance["value"])
        assert d["drop"] == pytest.approx(expected) and d["low"] <= d["drop"] <= d["high"]
    first = far_chance["drops"][0]
    assert far_chance["measures"]["attention 0, zero/drop"] == first["drop"]
    assert f"{first['drop']:.1%}" in ablation.show(far_chance)


def test_a_drop_is_above_0_where_the_model_gets_worse_whatever_is_better():
    assert relative_drop(2.0, 3.0, 5.0, -1) == pytest.approx(1 / 3)  # a loss
    assert relative_drop(0.9, 0.6, 0.1, 1) == pytest.approx(3 / 8)  # an accuracy
    for whole, chance, sign in ((6.0, 5.0, -1), (5.0, 5.0, -1), (0.1, 0.2, 1), (0.2, 0.2, 1)):
        assert relative_drop(whole, whole + 1, chance, sign) is None


@pytest.mark.slow
def test_controls(measured, far_chance):
    assert {name for name, control in measured["controls"].items() if control["ok"]} == {
        *("no edit", "a constant ffn, mean", "a constant ffn, zero", "no context")
    }
    far = far_chance["controls"]["no context"]  # a wrong chance level
    assert not far["ok"] and far["value"] == pytest.approx(far["expected"] / 3, rel=1e-4)


@pytest.mark.slow
def test_a_mean_that_is_wrong_fails_a_control(run, store_path, monkeypatch):
    right = ablation.site_means

    def wrong(*known):
        return {site: 1.1 * mean for site, mean in right(*known).items()}

    monkeypatch.setattr(ablation, "site_means", wrong)
    output = run.parent / "wrong.json"
    call = ["evaluate", "ablation", "--on", "mlm", "--model", run, "--data", store_path]
    assert main([*map(str, call), "--parts", "tables", "--output", str(output)]) == 0
    controls = json.loads(output.read_bytes())["controls"]
    assert [name for name, c in controls.items() if not c["ok"]] == ["a constant ffn, mean"]


@pytest.mark.slow
def test_blocks_are_left_out_in_orders_and_in_all_choices(measured):
    blocks = [c for c in measured["cumulative"] if c["order"] == "from the top"]
    assert [(c["removed"], c["edits"]) for c in blocks] == [
        (1, ["block@2"]),
        (2, ["block@1", "block@2"]),
    ]
    assert {c["order"] for c in measured["cumulative"]} == {
        *("from the top", "from the middle", "least influence first")
    }
    alone = [d["value"] for d in measured["drops"] if (d["component"], d["mode"]) == BLOCK]
    assert [(s["removed"], s["subsets"]) for s in measured["subsets"]] == [(1, 3), (2, 3)]
    assert [measured["subsets"][0][end] for end in ("min", "median", "max")] == sorted(alone)
    for c in measured["cumulative"]:
        of = measured["subsets"][c["removed"] - 1]
        assert of["min"] <= c["value"] <= of["max"]


@pytest.mark.slow
def test_a_failed_control_is_said(measured):
    controls = {"no edit": {"value": 0.25, "expected": 0.0, "ok": False}}
    text = ablation.show({**measured, "controls": controls})
    assert "CONTROL FAILED: no edit: 0.25, expected 0.0" in text
    assert "CONTROL" not in ablation.show(measured)


@pytest.mark.slow
def test_language_means_are_those_of_the_text_of_each_language(run, store_path, monkeypatch):
    """Where attention tells nothing of a language, the mean over all and that of each are one."""
    call = ["evaluate", "ablation", "--on", "mlm", "--model", run, "--data", store_path]
    found, read, means = {}, [], ablation.site_means

    def counted(model, sites, text):
        read.append([name for name, _ in text])
        return means(model, sites, text)

    monkeypatch.setattr(ablation, "site_means", counted)
    for mode in ("mean", "language-mean"):
        output = run.parent / f"{mode}.json"
        more = ["--mode", mode, "--parts", "attention", "--output", output]
        assert main([*map(str, [*call, *more])]) == 0
        record = json.loads(output.read_bytes())
        found[mode] = [d for d in record["drops"] if d["mode"] == mode]
        assert len(found[mode]) == 3 and record["reference"]["languages"] > 1
    of_one = [name for names in read for name in names if len(names) == 1]
    assert len(of_one) == len({*of_one}) > 1  # the text of each is read once
    values = [[d["value"] for d in drops] for drops in found.values()]
    assert not np.allclose(*values, rtol=1e-6)
    np.testing.assert_allclose(*values, rtol=0.1)  # but near


def test_the_command_knows_the_parts():
    assert cli._PARTS == ablation.PARTS


def test_what_is_removed():
    found = removals(CONFIG, ("attention", "block", "tables", "head"), "mean")
    texts = [" ".join(removal.edits) for removal in found]
    assert texts[:3] == ["attention@0=mean", "attention@1=mean", "attention@2=mean"]
    assert "language=mean script=mean" in texts and "head@2.1=mean" in texts
    assert len(texts) == len({*texts}) == 6 + 5 + 3 + 6
    assert [parse_edit(edit) for text in texts for edit in text.split()]
    none = dataclasses.replace(CONFIG, placement="none")
    assert removals(none, ("tables",), "zero") == []
    one = dataclasses.replace(CONFIG, num_hidden_layers=1)
    assert removals(one, ("block", "run"), "zero") == []  # nothing would be left


def test_orders():
    orders = removal_orders([0.5, 0.1, 0.9, 0.2])
    assert len(orders) == 3  # of so few all subsets are left out
    assert orders["from the top"] == [3, 2, 1, 0]
    assert orders["from the middle"] == [1, 2, 0, 3]
    assert orders["least influence first"] == [1, 3, 0, 2]
    many = removal_orders([0.1] * 7)
    random = [order for name, order in many.items() if name.startswith("random")]
    assert len(random) == 5 and all(sorted(order) == [*range(7)] for order in random)
    assert many == removal_orders([0.1] * 7)


def test_correlations_are_of_single_removals():
    values = [0.3, 0.1, 0.2, 0.7]
    drops = [
        {"component": "block", "mode": mode, "drop": drop}
        for mode in ("drop", "swap")
        for drop in (0.4, 0.2, 0.1, 0.5)
    ]
    rho = spearmanr(values, [0.4, 0.2, 0.1, 0.5]).statistic
    assert correlations({"block": values, "ffn": values}, drops) == {"block": pytest.approx(rho)}
    flat = [{**drop, "drop": 0.0} for drop in drops]
    assert correlations({"block": values}, flat) == {}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Rows of one loss before and another after: the drop is (2 - 3) / (2 - 5)."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(60):
        counts = rng.integers(5, 20, 80).astype(float)
        shared = rng.normal(0, 0.5, 80)
        before, after = (
            Scores(0, {}, counts * (mean + shared + rng.normal(0, 0.3, 80)), counts)
            for mean in (2, 3)
        )
        low, high = drop_interval(before, after, 5.0, -1, seed)
        covered += low < 1 / 3 < high
    assert 52 <= covered <= 60
    assert drop_interval(Scores(1, {}), Scores(2, {}), 5.0, -1) == (None, None)
    for chance in (1.0, 2.0):  # which the whole model is not, or not surely, better than
        assert drop_interval(before, after, chance, -1) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["xlm-roberta", "xlm-roberta-xl"])
def test_influences_are_those_of_numpy(architecture, random_model):
    model = random_model(architecture=architecture)
    ids = [np.array(i, np.int32) for i in ([0, 5, 9, 2], [0, 7, 2], [0, 11, 12, 13, 14, 2])]
    found = influences(model, [("qaa_Latn", ids[:2]), ("qab_Latn", ids[2:])])
    parts = {"block": [], "attention": [], "ffn": []}
    for row in ids:
        inputs = row[None], np.ones((1, len(row)), bool), None
        taps = tuple((s, lambda y, _: y) for s in ("states", "attention", "feed_forward"))
        read = model.model.apply({"params": model.params}, *inputs, taps, method=model.model.read)
        x = np.asarray(read["states"], np.float64)[:, 0]
        if architecture == "xlm-roberta-xl":  # its last states are behind a norm
            x[-1] = x[-2] + np.asarray(read["attention"] + read["feed_forward"])[-1, 0]
        norm = np.linalg.norm(x, axis=-1)
        parts["block"].append(1 - (x[:-1] * x[1:]).sum(-1) / (norm[:-1] * norm[1:]))
        for name, site in (("attention", "attention"), ("ffn", "feed_forward")):
            added = np.linalg.norm(np.asarray(read[site])[:, 0], axis=-1)
            parts[name].append(added / norm[:-1])
    for name, values in parts.items():
        expected = np.concatenate(values, axis=1).mean(axis=1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_language_means_need_text_of_every_language(
    run, store_path, tmp_path, write_corpus, command_refused
):
    text = {name: ["a b c"] for name in Store(store_path).manifest.names}
    lacking, empty, *_ = text
    del text[lacking]
    corpus = write_corpus(tmp_path / "corpus", **text | {empty: []})
    call = ["evaluate", "ablation", "--on", "mlm", "--model", run, "--data", store_path]
    call += ["--mode", "language-mean", "--reference", corpus, "--output", tmp_path / "none.json"]
    line = command_refused(*call)
    assert "language-mean" in line and lacking in line and empty in line
    assert not any(name in line for name in [*text][1:])


@pytest.mark.parametrize(
    "more, message",
    [
        (["--parts", "legs"], "legs"),
        pytest.param(
            ["--on", "retrieval-bible", "--mode", "language-mean"],
            "needs --on mlm",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_are_one_line(more, message, run, store_path, corpus, capsys):
    data = corpus / "held_out" if "retrieval-bible" in more else store_path
    call = ["evaluate", "ablation", "--on", "mlm", "--model", run, "--data", data]
    call += ["--pivot", "qaa_Latn", *more]
    try:
        status = main([*map(str, call)])
    except SystemExit as end:  # what argparse refuses
        status = end.code
    line = capsys.readouterr().err
    assert status == 2 and message in line
