"""run.py: what a run was started with is told by content, and what may differ when it goes on."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.huggingface.layout import DECIDED_FIELDS
from langsamp_jax.huggingface.weights import Weights
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.training.config import Configs, with_overrides
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.resume import model_sizes, reopen_run
from langsamp_jax.training.run import Run, open_run
from langsamp_jax.training.setup import start_run
from tests.tiny import MODEL, TRAIN

CONFIGS = Configs(TRAIN, MODEL)
DONE = 2


@pytest.fixture(scope="module")
def store(store_path) -> Store:
    return Store(store_path)


def make_run(path: Path, store: Store, configs: Configs = CONFIGS, weights: Path | None = None):
    inventory = EMPTY.extended(store.manifest.names)
    pretrained = weights and SimpleNamespace(path=weights, weights=Weights(weights))
    return start_run(path, store, inventory, configs.all(), pretrained, started=0.0)


def go_on(
    run: Run, store: Store, weights: Path | None = None, done: int = DONE, **overrides: object
):
    configs = with_overrides(
        run_configs(run), {k.replace("__", "."): v for k, v in overrides.items()}
    )
    return reopen_run(run.path, done, store, configs.all(), weights)


def run_configs(run: Run) -> Configs:
    return Configs(*(run.config(field.default_factory) for field in dataclasses.fields(Configs)))


def write_weights(folder: Path, value: float = 0.0) -> Path:
    """A folder whose config.json is that of ``MODEL``, with one tensor."""
    folder.mkdir()
    sizes = {"vocab_size": 9, "max_position_embeddings": MODEL.max_length + 2}
    sizes |= {name: getattr(MODEL, name) for name in DECIDED_FIELDS[1:-1]}
    (folder / "config.json").write_text(json.dumps({"model_type": "xlm-roberta", **sizes}))
    save_file({"table": np.full((2, 3), value, "f")}, folder / "model.safetensors")
    return folder


# The weights that a run was started from


def test_weights_are_known_wherever_they_lie(store, tmp_path, refused, capsys):
    run = make_run(tmp_path / "run", store, weights=write_weights(tmp_path / "start"))
    other = write_weights(tmp_path / "other", 1.0)
    moved = shutil.move(tmp_path / "start", tmp_path / "moved")
    run = open_run(Path(shutil.move(run.path, tmp_path / "elsewhere")))
    for weights in (None, moved):
        assert go_on(run, store, weights).id == run.id
    assert capsys.readouterr().err == ""
    assert go_on(run, store, tmp_path / "start").id == run.id
    assert capsys.readouterr().err == (
        f"--init_from {tmp_path / 'start'} is gone; {run.path} does not need it any more\n"
    )
    line = refused(go_on, run, store, other)
    assert line.startswith(f"{other} does not hold the weights that {run.path} was started from")


def test_a_run_from_random_weights_has_none(store, tmp_path, refused):
    run = make_run(tmp_path / "run", store)
    line = refused(go_on, run, store, write_weights(tmp_path / "start"))
    assert line == f"{run.path} was started from random weights; leave --init_from"


def test_without_a_checkpoint_the_weights_are_needed(store, tmp_path, refused):
    start = write_weights(tmp_path / "start")
    run = make_run(tmp_path / "run", store, weights=start)
    assert refused(go_on, run, store, done=0) == (
        f"{run.path} has no checkpoint yet and needs the weights that it was started from: give "
        f"--init_from, it was {start}"
    )
    assert go_on(run, store, start, done=0).id == run.id


def test_a_run_of_an_earlier_version_goes_on(store, tmp_path):
    """Its record has neither the contents of the weights nor the environment."""
    start = write_weights(tmp_path / "start")
    run = make_run(tmp_path / "run", store, weights=start)
    record = json.loads((run.path / "run.json").read_text())
    del record["weights"], record["environment"]
    (run.path / "run.json").write_text(json.dumps(record))
    for weights in (None, start):
        assert go_on(run, store, weights).weights is None


def test_sizes_come_from_the_weights_or_else_from_their_run(store, tmp_path, refused):
    start = write_weights(tmp_path / "start")
    sizes = model_sizes(tmp_path / "run", start)
    assert sizes == {f"model.{name}": getattr(MODEL, name) for name in DECIDED_FIELDS}
    run = make_run(tmp_path / "run", store, weights=start)
    shutil.rmtree(start)
    assert model_sizes(run.path, None) == model_sizes(run.path, start) == sizes
    assert model_sizes(make_run(tmp_path / "random", store).path, None) == {}
    assert "config.json" in refused(model_sizes, tmp_path / "none", start)
    line = refused(go_on, run, store, model__hidden_size=64)
    assert "model.hidden_size = 32, now 64" in line


# The length of a run


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """``runs(optimizer)``: a run of 4 steps with it, which is made once."""
    made = {}

    def runs(optimizer: OptimizerConfig) -> Run:
        if optimizer not in made:
            configs = dataclasses.replace(CONFIGS, optimizer=optimizer)
            made[optimizer] = make_run(tmp_path_factory.mktemp("length") / "run", store, configs)
        return made[optimizer]

    return runs


@given(
    schedule=st.sampled_from(["linear", "constant"]),
    warmup=st.integers(0, 5),
    done=st.integers(1, 4),
    steps=st.integers(1, 9),
)
def test_a_run_becomes_longer_where_its_past_stays(schedule, warmup, done, steps, runs, store):
    """The rate of an update is its warmup's or a constant one, up to the end of the warmup."""
    run = runs(OptimizerConfig(schedule=schedule, warmup_steps=warmup))
    before = (run.path / "run.json").read_bytes()
    stays = done <= steps and (schedule == "constant" or done <= warmup + 1)
    try:
        again = go_on(run, store, done=done, train__num_steps=steps)
        assert stays or steps == 4
        assert (
            again.settings["train.num_steps"]
            == steps
            == open_run(run.path).settings["train.num_steps"]
        )
    except Exception as error:
        assert f"train.num_steps = 4, now {steps}" in str(error), error
        assert not stays
    (run.path / "run.json").write_bytes(before)


def test_it_is_said_why_a_run_cannot_be_longer(store, tmp_path, refused, capsys):
    run = make_run(tmp_path / "run", store)
    line = refused(go_on, run, store, train__num_steps=8)
    assert line.endswith("another --output; the learning rate of the steps so far depends on it")
    assert refused(go_on, run, store, done=3, train__num_steps=2).endswith(
        "; it has 3 steps already"
    )
    constant = dataclasses.replace(CONFIGS, optimizer=OptimizerConfig(schedule="constant"))
    limited = dataclasses.replace(constant, mixture=MixtureConfig(maximum_epochs=2.5))
    run = make_run(tmp_path / "limited", store, limited)
    line = refused(go_on, run, store, train__num_steps=8)
    assert line.endswith("; the rows of the steps so far depend on it")
    run = make_run(tmp_path / "constant", store, constant)
    assert go_on(run, store, train__num_steps=8).config(type(TRAIN)).num_steps == 8
    assert capsys.readouterr().err == (
        "train.num_steps = 4, now 8: the steps so far stay as they are\n"
    )
    assert "train.num_steps = 8" in (run.path / "config.gin").read_text()


def test_the_mixture_may_change_from_a_later_step_on(store, tmp_path, refused):
    run = make_run(tmp_path / "run", store)
    later = [{"from_step": 3, "temperature": 1}]
    assert go_on(run, store, mixture__schedule=later).settings["mixture.schedule"] == later
    line = refused(go_on, run, store, mixture__schedule=[{"from_step": 1, "temperature": 1}])
    assert line.endswith("; the rows of the steps so far depend on it")


# A run without a checkpoint


def test_without_a_checkpoint_other_settings_make_the_run_anew(store, tmp_path, capsys):
    """As after "out of memory", whose advice could not be taken."""
    run = make_run(tmp_path / "run", store)
    assert go_on(run, store, done=0).id == run.id and capsys.readouterr().err == ""
    settings = {"train__accumulation_steps": 2, "model__dtype": "bfloat16"}
    assert go_on(run, store, done=0, **settings) is None
    assert capsys.readouterr().err == (
        f"{run.path} has no checkpoint yet and is made anew: train.accumulation_steps = 1, now 2, "
        "model.dtype = 'float32', now 'bfloat16'\n"
    )
    model = ModelConfig(**dataclasses.asdict(MODEL) | {"dtype": "bfloat16"})
    anew = make_run(run.path, store, dataclasses.replace(CONFIGS, model=model))
    assert anew.id != run.id and anew.settings["model.dtype"] == "bfloat16"


def test_a_folder_of_a_checkpoint_keeps_the_run(store, tmp_path, refused):
    """Also one that is not complete: what can be rescued is not written over."""
    run = make_run(tmp_path / "run", store)
    (run.checkpoints / "2").mkdir(parents=True)
    line = refused(go_on, run, store, done=0, train__accumulation_steps=2)
    assert "train.accumulation_steps = 1, now 2; use the same settings" in line


# The environment


def test_a_run_says_what_it_was_started_with_and_what_has_changed(store, tmp_path, capsys):
    run = make_run(tmp_path / "run", store)
    assert {"python", "jax", "numpy"} <= run.environment["versions"].keys()
    assert run.environment["platform"] == "cpu"
    now = run.environment["versions"]["jax"]
    record = json.loads((run.path / "run.json").read_text())
    record["environment"]["versions"]["jax"] = "0.1"
    record["environment"]["flags"]["XLA_FLAGS"] = "--old"
    (run.path / "run.json").write_text(json.dumps(record))
    assert go_on(run, store).id == run.id
    line = capsys.readouterr().err
    assert f"was started with jax 0.1, now {now}, XLA_FLAGS --old, now none" in line
    assert line.count("\n") == 1
