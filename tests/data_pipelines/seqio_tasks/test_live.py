"""The live feed: the rows of a store, without one, drawn alike; a run goes on exactly."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from data_pipelines.packing.prepare import prepare
from data_pipelines.seqio_tasks import live as module
from data_pipelines.seqio_tasks.live import LiveMixture
from data_pipelines.seqio_tasks.registry import OpenMixture, open_mixture
from data_pipelines.seqio_tasks.tasks import (
    AddLanguageScript,
    encode_lines,
    output_features,
    register_corpus,
)
from data_pipelines.seqio_tasks.vocabulary import TokenizerVocabulary
from data_pipelines.synthetic.world import synthesize
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.cli.main import main
from langsamp_jax.data.feed import Feed
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.loop import train
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.run import open_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tasks")]

LENGTH = 32
TRAIN = TrainConfig(
    num_steps=4, global_batch_size=8, checkpoint_every=2, eval_every=2, eval_rows=3, log_every=1
)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_length": LENGTH,
}


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten language-scripts, a tokenizer for them and a store of both."""
    folder = tmp_path_factory.mktemp("ten")
    synthesize(folder / "corpus", num_languages=10, num_sentences=600, seed=2, num_held_out=100)
    shutil.rmtree(folder / "corpus" / "held_out")
    train_tokenizer(folder / "corpus", 600, folder / "tokenizer.model")
    prepare(folder / "corpus", folder / "tokenizer.model", folder / "store", LENGTH, 0.1)
    return folder


@pytest.fixture
def mixture(ten: Path) -> OpenMixture:
    register_corpus("ten", ten / "corpus", ten / "tokenizer.model", 2.0, 0.1)
    return open_mixture("ten")


def live(mixture: OpenMixture, seed: int = 0, eval_rows: int | None = 3) -> LiveMixture:
    return LiveMixture(mixture, LENGTH, seed, eval_rows)


def configs(mixture: OpenMixture, **changes: object) -> Configs:
    loop = dataclasses.replace(TRAIN, **changes)
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    weighted = MixtureConfig(rule="weights", weights=mixture.weights)
    return Configs(loop, ModelConfig(**SIZES), weighted, optimizer=optimizer)


def all_rows(store: Store, split: str, name: str) -> np.ndarray:
    opened = store.split(split)
    index = opened.names.index(name)
    return opened.read(np.full(opened.rows[index], index), np.arange(opened.rows[index]))[0]


def read(split: module.LiveSplit, name: str, *rows: int) -> np.ndarray:
    tokens, lengths = split.read(np.full(len(rows), split.names.index(name)), np.array(rows))
    assert set(lengths) <= {LENGTH}
    return tokens


def test_both_feeds_draw_the_same_languages_at_every_step(ten, mixture):
    """Exactly: the counts, and which language-script has which place in the batch."""
    store, ours = Store(ten / "store"), live(mixture)
    assert ours.manifest.names == store.manifest.names and len(store.manifest.names) == 10
    config = MixtureConfig(rule="weights", weights=mixture.weights)
    sharding = batch_sharding(make_mesh(MeshConfig()))
    inventory = EMPTY.extended(store.manifest.names)
    feeds = []
    for data in (store, ours):
        sampler = config.sampler(data.manifest, 5, 1000, 64)
        feeds.append(Feed(data.split("train"), sampler, inventory, 64, sharding))
    seen = np.zeros(10, np.int64)
    for step in range(40):
        stored, drawn = (feed.rows(step) for feed in feeds)
        np.testing.assert_array_equal(stored.language, drawn.language)
        for language in np.unique(drawn.language):  # rows come one after the other
            rows = np.sort(drawn.row[drawn.language == language])
            np.testing.assert_array_equal(rows, seen[language] + np.arange(len(rows)))
            seen[language] += len(rows)
    rates = np.array([mixture.weights[name] for name in store.manifest.names])
    np.testing.assert_allclose(seen / seen.sum(), rates / rates.sum(), atol=1.1 / seen.sum())
    for step in (0, 1):
        stored, drawn = (feed.batch(step) for feed in feeds)
        np.testing.assert_array_equal(stored.ids, drawn.ids)
        assert drawn.attention_mask.all() and drawn.tokens.shape == stored.tokens.shape


def test_without_a_window_the_first_epoch_is_the_store(ten, mixture, monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 1)
    store, split = Store(ten / "store"), live(mixture).split("train")
    for name in split.names:
        expected = all_rows(store, "train", name)
        np.testing.assert_array_equal(read(split, name, *range(len(expected))), expected)


def test_rows_are_shuffled_within_a_window_and_none_is_lost(ten, mixture, monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 10)
    name = max(mixture.weights, key=mixture.weights.get)
    expected = all_rows(Store(ten / "store"), "train", name)
    found = read(live(mixture).split("train"), name, *range(len(expected)))
    order = {row.tobytes(): number for number, row in enumerate(expected)}
    assert len(order) == len(expected) > 100
    numbers = [order.get(row.tobytes(), len(expected)) for row in found]
    missing = len(expected) - len({number for number in numbers if number < len(expected)})
    assert missing <= 10  # still in the window
    assert all(number < place + 10 for place, number in enumerate(numbers))
    assert numbers != sorted(numbers)
    other = read(live(mixture, seed=1).split("train"), name, *range(50))
    assert not np.array_equal(found[:50], other)


def test_a_row_is_the_same_however_it_is_reached(mixture):
    forward, split = live(mixture).split("train"), live(mixture).split("train")
    first, second = forward.names[0], forward.names[3]
    rows = read(forward, first, *range(400))  # several epochs
    others = read(forward, second, *range(20))
    np.testing.assert_array_equal(read(split, first, 399), rows[399:])
    np.testing.assert_array_equal(read(split, first, 7, 3, 250), rows[[7, 3, 250]])
    language = np.array([split.names.index(n) for n in (second, first, second, first)])
    tokens, _ = split.read(language, np.array([19, 0, 2, 5]))
    np.testing.assert_array_equal(tokens, [others[19], rows[0], others[2], rows[5]])


def test_going_far_says_what_it_does(mixture, capsys, monkeypatch):
    monkeypatch.setattr("langsamp_jax.io.progress._SECONDS_BETWEEN_LINES", 0.0)
    split = live(mixture).split("train")
    read(split, split.names[0], 5)
    assert capsys.readouterr().err == ""
    read(split, split.names[0], 200)
    assert "pack the rows before: 194 of 194 rows" in capsys.readouterr().err


def test_validation_is_on_the_first_rows_of_the_store(ten, mixture):
    stored = Store(ten / "store").split("validation")
    for most in (3, None):
        split = live(mixture, eval_rows=most).split("validation")
        rows = stored.rows if most is None else np.minimum(stored.rows, most)
        np.testing.assert_array_equal(split.rows, rows)
        language = np.repeat(np.arange(10), rows)
        row = np.concatenate([np.arange(n) for n in rows])
        for ours, theirs in zip(split.read(language, row), stored.read(language, row), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_run_goes_on_exactly(ten, mixture, tmp_path):
    whole = train(live(mixture), tmp_path / "whole", configs(mixture))
    lines = (whole.path / "metrics.jsonl").read_text().splitlines()
    shutil.copytree(whole.path, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    run = train(live(mixture), tmp_path / "cut", configs(mixture))
    (_, ours), (_, theirs) = (restore_params(r, 4) for r in (run, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    again = (run.path / "metrics.jsonl").read_text().splitlines()
    for one, two in zip(map(json.loads, lines), map(json.loads, again), strict=True):
        values = {
            "step",
            "learning_rate",
            *(key for key in one if key.startswith(("train/", "eval/"))),
        }
        assert {key: one.get(key) for key in values} == {key: two.get(key) for key in values}
    assert (
        run.store == live(mixture).manifest.fingerprint != Store(ten / "store").manifest.fingerprint
    )
    with pytest.raises(UserError, match="train.seed = 0, now 1"):
        train(live(mixture, seed=1), run.path, configs(mixture, seed=1))


def test_the_command(ten, tmp_path, capsys, monkeypatch):
    file = tmp_path / "my_tasks.py"
    file.write_text(
        "from data_pipelines.seqio_tasks.tasks import register_corpus\n"
        f"register_corpus('mine', {str(ten / 'corpus')!r}, {str(ten / 'tokenizer.model')!r}, 2.0, "
        "validation_fraction=0.1)\n"
    )
    monkeypatch.setattr(module, "MANY_TASKS", 9)
    call = ["train", "--mixture", "mine", "--module", file, "--sequence_length", LENGTH]
    call += ["--output", tmp_path / "run"]
    call += [f"--gin.train.{name}={value}" for name, value in dataclasses.asdict(TRAIN).items()]
    call += [f"--gin.model.{name}={value}" for name, value in SIZES.items()]
    assert main([*map(str, call)]) == 0
    said = capsys.readouterr().err
    assert "the rates are those of mine" in said
    assert "10 tasks are many to read at once" in said and "prepare --mixture" in said
    config = (tmp_path / "run" / "config.gin").read_text()
    assert "mixture.rule = 'weights'" in config and "'qaa_Latn': " in config
    assert len(open_run(tmp_path / "run").settings["mixture.weights"]) == 10

    def refused(*arguments: object) -> str:
        try:
            status = main([*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        return capsys.readouterr().err

    elsewhere = ["--output", tmp_path / "other"]
    assert "a store" in refused("train", "--mixture", "mine", "--module", file, "--dry_run")
    line = refused("train", "--data", ten / "store", "--module", file, *elsewhere)
    assert "--module cannot be given with --data" in line
    assert "--mixture" in refused("train", *elsewhere)
    short = ["--mixture", "mine", "--module", file, "--sequence_length", 0]
    assert "--sequence_length 0: expected 8 to 65536" in refused("train", *short, *elsewhere)
    line = refused("train", "--mixture", "min", "--module", file, *elsewhere)
    assert "did you mean mine" in line
    assert not (tmp_path / "other").exists()


def test_tasks_of_one_language_take_turns_by_their_rates(ten, monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 1)
    features = output_features(TokenizerVocabulary(ten / "tokenizer.model"), ["deu_Latn"])
    steps = [
        encode_lines(features["targets"].vocabulary),
        AddLanguageScript("deu_Latn", features),
    ]
    for name, line in {"often": "aaaa", "seldom": "bb"}.items():
        source = seqio.FunctionDataSource(
            lambda split, shuffle_files, line=line: tf.data.Dataset.from_tensors(line).repeat(7),
            ["train"],
        )
        seqio.TaskRegistry.add(name, source, features, steps)
    seqio.MixtureRegistry.add("both", [("often", 3.0), ("seldom", 1.0)])
    data = LiveMixture(open_mixture("both"), LENGTH, 0, None)
    assert data.manifest.names == ("deu_Latn",) and data.split("validation").rows.tolist() == [0]
    rows = read(data.split("train"), "deu_Latn", *range(400))
    (piece,) = set(features["targets"].vocabulary.encode("bb")[-1:])
    count = Counter(bool((row == piece).any()) for row in rows)
    assert 0.65 < count[False] / 400 < 0.85


def test_a_task_without_text_ends_the_run_with_a_word(ten):
    features = output_features(TokenizerVocabulary(ten / "tokenizer.model"), ["deu_Latn"])
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensors("a").take(0), ["train"]
    )
    steps = [
        encode_lines(features["targets"].vocabulary),
        AddLanguageScript("deu_Latn", features),
    ]
    seqio.TaskRegistry.add("empty", source, features, steps)
    split = LiveMixture(open_mixture("empty"), LENGTH, 0, None).split("train")
    with pytest.raises(UserError, match="Task empty has no training examples"):
        read(split, "deu_Latn", 0)
