"""Mixtures and Tasks that cannot be used: each is refused in one line that names what it lacks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

from data_pipelines.seqio_tasks.tasks import AddLanguageScript, encode_lines, output_features
from data_pipelines.seqio_tasks.vocabulary import CodeVocabulary, TokenizerVocabulary

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tasks")]

LINES = [f"ein Satz mit der Zahl {number}" for number in range(90)]


def test_unknown_mixtures_and_modules(add_task, tmp_path, monkeypatch, mixture_refused):
    store = tmp_path / "store"
    assert "there is none; --module" in mixture_refused("deutsch", store)
    add_task("deutsch", "deu_Latn", LINES)
    assert "did you mean deutsch? There are deutsch" in mixture_refused("deutsh", store)
    assert "there are deutsch" in mixture_refused("xyz", store)
    assert "'xyz' after importing json" in mixture_refused("xyz", store, "json")
    assert "--module no.such cannot be imported" in mixture_refused("deutsch", store, "no.such")
    assert "No such file" in mixture_refused("deutsch", store, str(tmp_path / "none.py"))
    (tmp_path / "broken.py").write_text("1 / 0")
    assert "ZeroDivisionError" in mixture_refused("deutsch", store, str(tmp_path / "broken.py"))
    (tmp_path / "old.py").write_text("from data_pipelines.tasks import register_corpus")
    moved = "it is now data_pipelines.seqio_tasks.tasks"
    assert moved in mixture_refused("deutsch", store, str(tmp_path / "old.py"))
    (tmp_path / "beside.py").write_text("WORD = 1")
    monkeypatch.chdir(tmp_path)
    assert "after importing beside" in mixture_refused("xyz", store, "beside")


def test_tasks_that_lack_something_are_named(
    add_task, features, tokenizer_file, tmp_path, mixture_refused
):
    store, train = tmp_path / "store", LINES
    encode = encode_lines(features["targets"].vocabulary)
    only = {"targets": features["targets"]}
    add_task("bare", "deu_Latn", train, preprocessors=[encode], output_features=only)
    line = mixture_refused("bare", store)
    assert "Task bare has the features targets, but no language_ids" in line
    assert "AddLanguageScript" in line

    bytes_too = {**features, "targets": seqio.Feature(seqio.ByteVocabulary())}
    add_task("bytes", "deu_Latn", train, output_features=bytes_too)
    assert "ByteVocabulary, expected a TokenizerVocabulary" in mixture_refused("bytes", store)

    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(train), ["test"]
    )
    seqio.TaskRegistry.add("tested", source, features, [encode])
    assert "Task tested has no split train, only test" in mixture_refused("tested", store)

    add_task("unnamed", "deu_Latn", train, preprocessors=[encode])
    assert "Task unnamed: Task dataset is missing" in mixture_refused("unnamed", store)

    add_task("few", "deu_Latn", ["a"])
    assert "no language-script has enough text" in mixture_refused("few", store)

    other = output_features(
        TokenizerVocabulary(other_tokenizer(tokenizer_file, tmp_path)), ["deu_Latn", "gsw_Latn"]
    )
    steps = [encode_lines(other["targets"].vocabulary), AddLanguageScript("gsw_Latn", other)]
    add_task("one", "deu_Latn", train)
    add_task("two", "gsw_Latn", train, preprocessors=steps, output_features=other)
    seqio.MixtureRegistry.add("both", ["one", "two"], default_rate=1.0)
    assert "one and two have different tokenizers" in mixture_refused("both", store)


def test_examples_that_do_not_fit_their_task(add_task, features, tmp_path, mixture_refused):
    store, train = tmp_path / "store", LINES
    encode = encode_lines(features["targets"].vocabulary)
    constant = tf.constant(0)

    def changed(change: Callable[[dict], dict]) -> list[Callable]:
        ids = {"language_ids": constant, "script_ids": constant}
        return [encode, lambda dataset: dataset.map(lambda e: change({**e, **ids}))]

    def two_languages(example: dict) -> dict:
        return {**example, "language_ids": tf.size(example["targets"]) % 2}

    add_task("two", "deu_Latn", train, preprocessors=changed(two_languages))
    assert "Task two has examples of deu" in mixture_refused("two", store)
    few = [*changed(dict), lambda dataset: dataset.take(0)]
    add_task("empty", "deu_Latn", train, preprocessors=few)
    assert "Task empty has no training examples" in mixture_refused("empty", store)
    add_task("codes", "deu_Latn", train, preprocessors=changed(lambda e: {**e, "script_ids": 7}))
    assert "Task codes: script_ids 7, but there are 2 codes" in mixture_refused("codes", store)
    add_task(
        "ids",
        "deu_Latn",
        train,
        preprocessors=changed(lambda e: {**e, "targets": e["targets"] + 5000}),
    )
    assert "but its vocabulary has" in mixture_refused("ids", store)
    unknown = {**features, "language_ids": seqio.Feature(CodeVocabulary(["xxx"]), rank=0)}
    add_task("code", "deu_Latn", train, preprocessors=changed(dict), output_features=unknown)
    assert "'xxx' is not an ISO 639-3 language code" in mixture_refused("code", store)


def test_a_task_that_must_be_cached_is_refused(add_task, features, tmp_path, mixture_refused):
    steps = [encode_lines(features["targets"].vocabulary), AddLanguageScript("deu_Latn", features)]
    cached = [seqio.CacheDatasetPlaceholder(required=True), *steps]
    add_task("cached", "deu_Latn", LINES, preprocessors=cached)
    assert "Task 'cached' requires caching" in mixture_refused("cached", tmp_path / "store")


def test_rates_that_cannot_be_computed(add_task, tmp_path, mixture_refused):
    add_task("one", "deu_Latn", LINES)
    seqio.MixtureRegistry.add("counted", ["one"], default_rate=seqio.mixing_rate_num_examples)
    assert "the rate of one cannot be computed" in mixture_refused("counted", tmp_path / "store")
    seqio.MixtureRegistry.add("negative", ["one"], default_rate=-1.0)
    assert "the rate of one is -1.0" in mixture_refused("negative", tmp_path / "store")


def other_tokenizer(tokenizer_file: Path, folder: Path) -> Path:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer_file.read_bytes())
    del model.pieces[-1]
    (folder / "other.model").write_bytes(model.SerializeToString())
    return folder / "other.model"
