"""Protocol: Taxi1500, SIB-200, NER, part of speech; fine-tuned on one language, tested on all."""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import split_lines, truncate
from langsamp_jax.evaluation.config import FineTuneConfig, Protocol
from langsamp_jax.evaluation.datasets.classification import ClassificationSet, read_sentence_task
from langsamp_jax.evaluation.datasets.layout import TaskData
from langsamp_jax.evaluation.datasets.tagging import TaggingSet, read_tagging_task
from langsamp_jax.evaluation.finetune import NO_LABEL, FineTuner, LabelledExamples, finetune
from langsamp_jax.evaluation.jobs import Journal, average_measures, say, show_languages
from langsamp_jax.evaluation.metrics import accuracy, bare_tag_f1, entity_scores, macro_f1
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.languages.published import averages
from langsamp_jax.text.tokenizer import Tokenizer

# Published: 40 epochs, AdamW 1e-5, 2 parts of 8, best F1 of the English dev set (classification);
# 10 epochs, AdamW 2e-5, 4 parts of 8, gradients clipped at 1 (tagging).
_CLASSIFICATION = Protocol(True, 1e-5, 40, 16, 2, 100, 4, math.inf)
_TAGGING = Protocol(False, 2e-5, 10, 32, 1, 256, 1, 1.0)
PROTOCOLS = {
    "taxi1500": _CLASSIFICATION,
    "sib200": dataclasses.replace(_CLASSIFICATION, max_length=160, num_seeds=5),
    "ner": _TAGGING,
    "pos": _TAGGING,
}
METRICS = {  # the first is the one that counts
    "taxi1500": ("macro_f1", "accuracy"),
    "sib200": ("macro_f1", "accuracy"),
    "ner": ("entity_f1", "precision", "recall"),
    "pos": ("tag_f1", "accuracy"),
}

Scores = Callable[[LabelledExamples, Sequence[np.ndarray]], dict[str, float]]


def evaluate(
    model: LoadedModel,
    data: Path,
    journal: Journal,
    task: str,
    source: str,
    config: FineTuneConfig,
) -> dict[str, Any]:
    """Fine-tunes on the language-script ``source`` and tests on all, see ``evaluate_transfer``."""
    examples = read_task(data, task, source)
    return evaluate_transfer(model, task, examples, source, config, journal, say)


def show(record: Mapping[str, Any]) -> str:
    metrics = {}
    for metric in METRICS[record["task"]]:
        metrics |= {metric: f"{metric}:.3f", f"{metric}_std": "std:.3f"}
    return show_languages(record, {"examples": "examples:,", **metrics}, metrics)


measures = average_measures


def read_task(data: Path, task: str, source: str) -> TaskData[Any]:
    """Reads the files of ``task``, with ``source`` as the language-script to train on."""
    read = read_tagging_task if task in ("ner", "pos") else read_sentence_task
    return read(data, task, source)


def evaluate_transfer(
    trained: LoadedModel,
    task: str,
    data: TaskData[Any],
    source: str,
    config: FineTuneConfig,
    journal: Journal,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Fine-tunes with several seeds and tests every language with each.

    A seed is a part of the journal: one that was interrupted is trained again.

    Returns:
      ``languages``: a record each with the mean over seeds of ``METRICS`` and the standard
      deviation of each (``_std``, None for one seed), ``examples`` and ``truncated``; ``seeds``:
      the epoch that was kept of each and its score on the source's dev set; ``skipped``.

    Raises:
      UserError: the encoder needs a vector of the source language and has none, no language can be
        tested, or the training diverged.
    """
    protocol = PROTOCOLS[task].changed(config)
    max_length = min(protocol.max_length, trained.max_length)
    label = label_sentences
    if not protocol.pooled:
        label = functools.partial(label_words, names=data.labels)
    scores = scores_of(task, data.labels)
    train, dev = (label(trained.tokenizer, part, max_length) for part in (data.train, data.dev))
    ids, skipped = {source: trained.encoder_ids(source)}, dict(data.skipped)
    for name in data.test:
        try:
            ids[name] = trained.encoder_ids(name)
        except UserError as error:
            skipped[name] = str(error)
    tests = {
        name: label(trained.tokenizer, examples, max_length)
        for name, examples in data.test.items()
        if name in ids
    }
    if not tests:
        name, why = next(iter(skipped.items()))
        raise UserError(f"no language can be tested; {name}: {why}")
    tuner = FineTuner(trained, protocol, len(data.labels), len(train.tokens))
    metric = METRICS[task][0]

    def one_seed(seed: int) -> dict[str, Any]:
        dev_score = lambda predicted: scores(dev, predicted)[metric]  # noqa: E731
        params, best = finetune(tuner, train, dev, ids[source], seed, dev_score, say)
        test_scores = {
            name: scores(test, tuner.predict(params, test, ids[name]))
            for name, test in tests.items()
        }
        return {**best, "languages": test_scores}

    seeds = [
        {"seed": seed, **journal.part(f"{source}, seed {seed}", lambda seed=seed: one_seed(seed))}
        for seed in range(protocol.num_seeds)
    ]
    languages = [
        {
            "language": name,
            "examples": len(test.tokens),
            "truncated": test.truncated,
            **_over_seeds([seed["languages"][name] for seed in seeds]),
        }
        for name, test in tests.items()
    ]
    return {
        "metric": metric,
        "source": source,
        "protocol": dataclasses.asdict(protocol),
        "seeds": [{k: v for k, v in seed.items() if k != "languages"} for seed in seeds],
        "languages": languages,
        "averages": averages_over_seeds(languages, METRICS[task], task),
        "truncated": {"train": train.truncated, "dev": dev.truncated},
        "skipped": skipped,
    }


def averages_over_seeds(
    languages: Sequence[Mapping[str, Any]], metrics: Sequence[str], task: str
) -> dict[str, dict[str, Any]]:
    """Returns ``averages`` of records whose ``METRIC_seeds`` lists a value for each seed.

    A value is the mean over the seeds' averages, beside its standard deviation (``_std``, None for
    one seed).
    """
    number = len(languages[0][f"{metrics[0]}_seeds"])
    averages_of_seeds = [
        averages(
            [
                {"language": r["language"], **{m: r[f"{m}_seeds"][seed] for m in metrics}}
                for r in languages
            ],
            metrics,
            task,
        )
        for seed in range(number)
    ]
    return {
        group: {"languages": average["languages"]}
        | _over_seeds([{m: seed[group][m] for m in metrics} for seed in averages_of_seeds], False)
        for group, average in averages_of_seeds[0].items()
    }


def label_sentences(
    tokenizer: Tokenizer, examples: ClassificationSet, max_length: int
) -> LabelledExamples:
    """Returns a label for each text, at ``<s>``."""
    sentences = split_lines(*tokenizer.encode(examples.texts))
    tokens, longer = truncate(sentences, max_length, tokenizer.vocabulary.eos_id)
    return LabelledExamples(
        tokens, [np.array([label]) for label in examples.labels], int(longer.sum())
    )


def label_words(
    tokenizer: Tokenizer, examples: TaggingSet, max_length: int, names: Sequence[str]
) -> LabelledExamples:
    """Returns a label for each word, the index of its tag among ``names``, at its first piece.

    Words that do not fit are not scored.
    """
    vocabulary = tokenizer.vocabulary
    number = {tag: i for i, tag in enumerate(names)}
    words = list(itertools.chain.from_iterable(examples.words))
    pieces = iter([ids[1:-1] for ids in split_lines(*tokenizer.encode(words))])
    tokens, labels, truncated = [], [], 0
    for sentence, tags in zip(examples.words, examples.tags, strict=True):
        row, aims = [vocabulary.bos_id], [NO_LABEL]
        for _, tag in zip(sentence, tags, strict=True):
            # What the tokenizer drops, as a lone soft hyphen, is a word all the same.
            ids = next(pieces).tolist() or [vocabulary.unk_id]
            row += ids
            aims += [number[tag], *[NO_LABEL] * (len(ids) - 1)]
        truncated += len(row) + 1 > max_length
        tokens.append(np.array([*row[: max_length - 1], vocabulary.eos_id], np.int32))
        labels.append(np.array([*aims[: max_length - 1], NO_LABEL], np.int32))
    return LabelledExamples(tokens, labels, truncated)


def scores_of(task: str, names: Sequence[str]) -> Scores:
    """Returns a function from examples and predictions to ``METRICS[task]``."""

    def scores(examples: LabelledExamples, predicted: Sequence[np.ndarray]) -> dict[str, float]:
        true = [labels[labels != NO_LABEL] for labels in examples.labels]
        if task == "ner":
            scored = entity_scores(_named(true, names), _named(predicted, names))
            return {"entity_f1": scored.f1, "precision": scored.precision, "recall": scored.recall}
        together = np.concatenate(true), np.concatenate(predicted)
        if task == "pos":
            tags = bare_tag_f1(_named(true, names), _named(predicted, names))
            return {"tag_f1": tags, "accuracy": accuracy(*together)}
        return {"macro_f1": macro_f1(*together), "accuracy": accuracy(*together)}

    return scores


def _named(labels: Sequence[np.ndarray], names: Sequence[str]) -> list[list[str]]:
    return [[names[i] for i in row] for row in labels]


def _over_seeds(
    scores: Sequence[Mapping[str, float]], with_each: bool = True
) -> dict[str, float | list[float] | None]:
    summary: dict[str, float | list[float] | None] = {}
    for metric in scores[0]:
        values = [score[metric] for score in scores]
        summary[metric] = statistics.fmean(values)
        summary[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else None
        if with_each:
            summary[f"{metric}_seeds"] = values
    return summary
