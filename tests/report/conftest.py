"""Runs with everything to report, nothing, and names that want to be markup."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.neurons.concept_steps import over_steps
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.setup import start_run
from tests.concept_records import step_record
from tests.tiny import SIZES

NAMES = (
    *("eng_Latn", "deu_Latn", "rus_Cyrl", "hin_Deva", "zho_Hani", "arb_Arab", "swh_Latn"),
    *("quy_Latn", "ayr_Latn", "tat_Cyrl", "bod_Tibt", "yor_Latn", "grn_Latn", "ckb_Arab"),
)
_FAMILIES = ["Indo-European"] * 4 + ["Sino-Tibetan", "Afro-Asiatic", "Atlantic-Congo", "Quechuan"]
_FAMILIES += ["Aymaran", "Turkic", "Sino-Tibetan", "Atlantic-Congo", "Tupian", None]
_HEAD = 7
LAYERS = 7


@pytest.fixture(scope="session")
def new_run(store_path: Path) -> Callable[..., Path]:
    """``new_run(path, **mixture)``: a run of 100 steps of 8 rows that has not begun."""

    def new_run(path: Path, **mixture: Any) -> Path:
        store = Store(store_path)
        configs = Configs(
            TrainConfig(num_steps=100, global_batch_size=8),
            ModelConfig(**SIZES | {"num_hidden_layers": 6}),
            MixtureConfig(**mixture),
        )
        inventory = EMPTY.extended(store.manifest.names)
        return start_run(path, store, inventory, configs.all(), None, started=0.0).path

    return new_run


@pytest.fixture(scope="session")
def log() -> Callable[..., None]:
    """``log(run, steps, names)``: metrics as training writes them, validation at every fifth."""

    def log(run: Path, steps: Sequence[int], names: Sequence[str] = NAMES) -> None:
        with open(run / "metrics.jsonl", "a") as stream:
            for step in steps:
                values = {"train/loss": 4 + 4 / step, "learning_rate": 1e-3 / step, "mfu": 0.41}
                values |= {"tokens_per_second": 9000.0 + step, "real_tokens_per_second": 8000.0}
                values |= {"time/step": 0.3, "time/input": 0.01, "time/validation": 0.1}
                values |= {"time/checkpoint": 0.02, "goodput": 0.8}
                stream.write(json.dumps({"step": step, **values}) + "\n")
                if step % 5 == 0:
                    losses = {f"eval/loss/{name}": 5 + 1 / step for name in names}
                    line = {"step": step, "eval/loss": 5 + 1 / step, **losses}
                    stream.write(json.dumps(line) + "\n")

    return log


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., dict[str, Any]]:
    """``evaluate(run, names)``: writes every evaluation there is; gives them by their stems."""

    def evaluate(run: Path, names: Sequence[str] = NAMES) -> dict[str, Any]:
        (run / "evaluation").mkdir()
        found = evaluations(names)
        for stem, record in found.items():
            (run / "evaluation" / f"{stem}.json").write_text(json.dumps(record))
        return found

    return evaluate


@pytest.fixture(scope="session")
def full_run(new_run, log, evaluate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half way, with every evaluation. Its report is for the test to make."""
    run = new_run(tmp_path_factory.mktemp("full") / "my-run")
    log(run, range(1, 51))
    evaluate(run)
    return run


def evaluations(names: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    losses = [
        {"language": name, "rows": 9, "targets": 99, "loss": 4 + rng.random(),
         "unigram_loss": 5 + rng.random()}
        for name in names
    ]  # fmt: skip
    losses.append({"language": "xho_Latn", "rows": 0, "targets": 0, "loss": None,
                   "unigram_loss": None})  # fmt: skip
    mlm = {"task": "mlm", "step": 50, "loss": 4.5, "unigram_loss": 5.5, "languages": losses}
    tasks = {
        "retrieval-bible": "top10",
        "retrieval-tatoeba": "top10",
        "taxi1500": "macro_f1",
        "sib200": "macro_f1",
        "ner": "entity_f1",
        "pos": "tag_f1",
        "pseudo-perplexity": "bits_per_character",
    }
    return {
        "mlm": mlm,
        **{stem: _task(stem, metric, names, rng) for stem, metric in tasks.items()},
        "neutrality": _neutrality(names, rng),
        "concepts-steps": _concepts(names),
        "neurons": neurons(names, rng),
        "language-probe-steps": _language_probe(names),
        "ablation": _ablation(),
        "geometry": _geometry(names, rng),
        "donors": _donors(names),
    }


def _task(stem: str, metric: str, names: Sequence[str], rng: np.random.Generator) -> Any:
    languages = []
    for place, name in enumerate(names):
        record = {"language": name, "group": "head" if place < _HEAD else "tail"}
        record[metric] = 0.9 - 0.5 * place / len(names) + 0.02 * rng.random()
        if metric == "top10":
            top1 = record[metric] / 2
            record |= {"sentences": 500, "top1": top1, "chance_top1": 0.002, "chance_top10": 0.02}
        else:
            record |= {f"{metric}_std": 0.01, "examples": 111}
        languages.append(record)
    values = [record[metric] for record in languages]
    averages = {
        "all": {"languages": len(names), metric: float(np.mean(values)), f"{metric}_std": 0.004},
        "head": {"languages": _HEAD, metric: float(np.mean(values[:_HEAD]))},
    }
    seeds = {} if metric == "top10" else {"source": "eng_Latn", "seeds": [{"seed": 0, "dev": 0.9}]}
    return {"task": stem, "model": "run", "step": 50, "data": "text", "metric": metric,
            "languages": languages, "averages": averages, "skipped": {"xho_Latn": "no text"},
            "seconds": 9.0, **seeds}  # fmt: skip


def _concepts(names: Sequence[str]) -> Any:
    records = [step_record(step, step / 100, names) for step in (0, 10, 50)]
    return {"task": "concepts", "data": "text", **over_steps(records)}


def _neutrality(names: Sequence[str], rng: np.random.Generator) -> Any:
    pairs = list(itertools.combinations(range(len(names)), 2))
    rise = np.linspace(0, 0.3, LAYERS)
    random = np.tile(0.3 + rise, (len(pairs), 1))
    gap = rise * rng.uniform(0.3, 1, (len(pairs), 1))
    keys = {"matched": random + gap, "random": random, "gap": gap, "top1": gap * 2}
    keys |= {f"{key}_centred": value * 0.8 for key, value in list(keys.items())[:3]}
    return {"task": "neutrality", "step": 50, "data": "text", "languages": list(names),
            "num_layers": LAYERS, "pairs": pairs, "sentences": [500] * len(pairs),
            **{key: value.tolist() for key, value in keys.items()},
            "mean": {key: value.mean(axis=0).tolist() for key, value in keys.items()}}  # fmt: skip


def neurons(names: Sequence[str], rng: np.random.Generator, layers: int = LAYERS,
            steps: Sequence[int] = (0, 50)) -> Any:  # fmt: skip
    compared = sorted(names)[:8]
    pairs = list(itertools.combinations(compared, 2))

    def by_step() -> list[list[float]]:
        return rng.uniform(0.1, 0.9, (len(steps), layers)).tolist()

    def by_pair() -> list[list[float]]:
        return rng.uniform(0, 0.4, (len(pairs), layers)).tolist()

    def by_tested() -> list[list[float]]:
        return rng.normal(0, 0.1, (len(compared), len(compared))).tolist()

    excess = {"value": 0.02, "low": 0.01, "high": 0.03}
    clamped = {"edited": compared, "tested": compared, "neurons": [3] * len(compared),
               "excess": excess, "sentences": 100, "skipped": {}}  # fmt: skip
    clamped |= {kind: by_tested() for kind in ("own", "matched")}
    contrast = {"value": 0.1, "low": -0.02, "high": 0.22, "null_mean": 0.0, "null_max95": 0.01}
    lines = ("selectivity", "within_script", "across_scripts", "shared_pieces_by_layer",
             "same_language", "rank_disagreement", "firing_rate", "flatness")  # fmt: skip
    own = {name: rng.integers(0, 9, layers).astype(float).tolist() for name in names}
    control = {"value": 0.999, "expected": "> 0.99", "ok": True}
    return {"task": "neurons", "step": steps[-1], "steps": list(steps), "layers": layers,
            "languages": list(names), "compared": compared, "pairs": [list(p) for p in pairs],
            "pairs_left_out": 0, "sentences": 500, **{name: by_step() for name in lines},
            "two_scripts": [[None] * layers] * len(steps), "contrast": contrast,
            "null": {key: by_step() for key in ("mean", "low", "high")},
            "by_pair": {"rank_disagreement": by_pair()}, "by_language": {"own": own},
            "clamped": clamped, "controls": {"planted_neuron": control}}  # fmt: skip


def _geometry(names: Sequence[str], rng: np.random.Generator) -> Any:
    codes = [name.split("_")[0] for name in names]
    scripts = sorted({name.split("_")[1] for name in names if "_" in name}) or ["Latn", "Cyrl"]

    def table(rows: Sequence[str]) -> Any:
        near = {row: [[other, 0.5] for other in rows[:3] if other != row] for row in rows}
        return {"names": list(rows), "coordinates": rng.normal(size=(len(rows), 2)).tolist(),
                "explained": [0.3, 0.2], "neighbours": near}  # fmt: skip

    typology = {"with": "typology", "rho": 0.31, "p": 0.0004, "languages": 14, "permutations": 9999}
    families = [*_FAMILIES, *[None] * len(names)][: len(names)]
    language = {**table(codes), "families": families, "correlations": [typology]}
    return {"task": "geometry", "step": 50, "tables": {"language": language,
                                                       "script": table(scripts)}}  # fmt: skip


def _donors(names: Sequence[str]) -> Any:
    means = {"random": 0.4, "English": 0.55, "language vectors": 0.6, "oracle": 0.7}
    choices = [
        {"choice": choice, "mean": mean, "low": mean - 0.03, "high": mean + 0.03, "targets": 9,
         "common": {"mean": mean + 0.1, "low": mean + 0.07, "high": mean + 0.13, "targets": 5},
         "against": {"random": {"difference": mean - 0.4, "low": None, "high": None}},
         "chosen": {name: names[0] for name in names[1:]}}
        for choice, mean in means.items()
    ]  # fmt: skip
    correlations = [{"similarity": "language vectors", "rho": 0.4, "low": 0.3, "high": 0.5}]
    return {"task": "donors", "on": "sib200", "metric": "macro_f1", "targets": list(names[1:]),
            "donors": list(names), "scores": [], "choices": choices,
            "correlations": correlations}  # fmt: skip


def _language_probe(names: Sequence[str]) -> dict[str, Any]:
    """Three steps of a model of 2 layers; no test token was unseen at the first."""
    arrays = ("accuracy", "low", "high", "control", "within_script", "cross_entropy")
    record = {name: [[0.1 * (step + layer) for layer in range(3)] for step in range(3)]
              for name in arrays}  # fmt: skip
    control = {"value": 0.01, "expected": "> 0.05", "ok": False}
    return {
        **record,
        "task": "language-probe",
        "steps": [0, 64, 700],
        "layers": 3,
        "unseen_pieces": [None, [0.1, 0.2, 0.3], [0.2, 0.3, 0.4]],
        "chance": 1 / len(names),
        "chance_within_script": 0.25,
        "languages": list(names),
        "sentences": 750,
        "controls": {"random classes of sentences, p": control},
    }


def _ablation() -> dict[str, Any]:
    drop = {"drop": 0.2, "low": 0.1, "high": 0.3}
    drops = [
        {"component": part, "layer": layer, "mode": "mean", "value": 4.2, "change": 0.2, **drop}
        for part in ("attention", "ffn")
        for layer in range(2)
    ]
    drops.append(drops[0] | {"component": "all attention", "layer": None, "low": None})
    orders = ("from the top", "random 1", "random 2")
    return {
        "task": "ablation",
        "step": 700,
        "on": "mlm",
        "metric": "loss",
        "value": 4.0,
        "chance": 5.0,
        "no_drop": None,
        "drops": drops,
        "cumulative": [{"order": o, "removed": 1, "value": 4.2 + k} for k, o in enumerate(orders)],
        "subsets": [],
        "correlations": {"attention": -0.5},
        "controls": {"no edit": {"value": 0.1, "expected": 0.0, "ok": False}},
    }
