"""The tasks of ``langsamp evaluate``, from a model and data on disk to a result on disk.

A result is a JSON object: what was asked (``task``, ``model``, ``step``, ``data``), what came of
it, ``skipped`` (languages without a result, and why) and ``seconds``.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langsamp_jax.analysis import donors as donor_choices
from langsamp_jax.analysis import geometry as tables
from langsamp_jax.analysis.neutrality import evaluate_neutrality
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.datasets.classification import read_sentence_task
from langsamp_jax.evaluation.datasets.layout import TaskData
from langsamp_jax.evaluation.datasets.pairs import read_sentence_pairs
from langsamp_jax.evaluation.datasets.tagging import read_tagging_task
from langsamp_jax.evaluation.encoder import protocol_layer, sentence_encoder
from langsamp_jax.evaluation.finetune import FineTuneConfig
from langsamp_jax.evaluation.journal import Journal
from langsamp_jax.evaluation.loss import evaluate_masked_lm
from langsamp_jax.evaluation.model import LoadedModel, is_run, load_model
from langsamp_jax.evaluation.pseudo_perplexity import pseudo_perplexity as measure_pseudo_perplexity
from langsamp_jax.evaluation.retrieval import TOP, evaluate_pairs, folder_pairs
from langsamp_jax.evaluation.transfer import METRICS, evaluate_transfer, transfer_matrix
from langsamp_jax.io.files import write_text
from langsamp_jax.io.storage import is_remote
from langsamp_jax.languages.aligned_text import aligned_corpus, aligned_lines, corpus_files
from langsamp_jax.languages.inventory import scripts_by_language
from langsamp_jax.languages.published import averages
from langsamp_jax.languages.typology import read_families, read_references
from langsamp_jax.training.run import open_run
from langsamp_jax.training.setup import restore_params

Measure = Callable[[LoadedModel, Journal], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
    """One evaluation: ``task`` of the model in ``model`` (a run or a Hugging Face folder), at the
    checkpoint of ``step`` (None: the best), on ``data``; the result goes to ``output``, by default
    to the run's folder."""

    task: str
    model: Path
    data: Path | None = None
    step: int | None = None
    output: Path | None = None

    @property
    def result(self) -> Path:
        """Raises UserError where there is no place for it."""
        if self.output is not None:
            if self.output.is_dir():
                raise UserError(f"--output {self.output} is a folder; name the .json file to write")
            return self.output
        if not is_run(self.model):
            raise UserError(f"{self.model} is no run; say where the result goes with --output")
        return self.model / "evaluation" / f"{self.task}.json"


def masked_lm(job: Job) -> dict[str, Any]:
    """The masked-LM loss of every language of a store."""
    started, run = _start(job), open_run(job.model)
    step, params = restore_params(run, job.step)
    results = evaluate_masked_lm(run, params, Store(job.data))
    return _write(job, started, {**_asked(job, step), **results})


def retrieval(job: Job, pivot: str) -> dict[str, Any]:
    """Sentence retrieval, on pairs of files (``retrieval-tatoeba``) or on a folder of aligned ones.

    Raises:
      UserError: nothing is aligned with the pivot.
    """
    read = read_sentence_pairs if job.task == "retrieval-tatoeba" else folder_pairs
    pairs, skipped = read(job.data, pivot)
    if not pairs:
        raise UserError(f"{job.data} has no sentences that are aligned with {pivot}")

    def measure(trained: LoadedModel, journal: Journal) -> dict[str, Any]:
        layer = protocol_layer(trained)
        encode = sentence_encoder(trained, [layer])
        records, unread = evaluate_pairs(encode, pivot, pairs, journal)
        published = {"retrieval-tatoeba": "sr_tatoeba", "retrieval-bible": "sr_bible"}[job.task]
        top = [f"top{k}" for k in TOP]
        languages = _averaged(records, {**skipped, **unread}, top, published)
        return {"metric": "top10", "pivot": pivot, "layer": layer, **languages}

    return _measured(job, {"pivot": pivot}, measure)


def transfer(job: Job, source: str, config: FineTuneConfig) -> dict[str, Any]:
    """Fine-tunes on ``source``, tests on all: taxi1500, sib200, ner or pos."""
    data = _read_task(job.data, job.task, source)

    def measure(trained: LoadedModel, journal: Journal) -> dict[str, Any]:
        return evaluate_transfer(trained, job.task, data, source, config, journal, _say)

    return _measured(job, {"source": source, **dataclasses.asdict(config)}, measure)


def pseudo_perplexity(job: Job, sentences: int) -> dict[str, Any]:
    """Pseudo-perplexity of the first ``sentences`` lines of each language."""
    files = corpus_files(job.data)

    def measure(trained: LoadedModel, journal: Journal) -> dict[str, Any]:
        measured = measure_pseudo_perplexity(trained)

        def language(name: str) -> dict[str, Any]:
            lines = [line for line in aligned_lines(files[name]) if line]
            return measured(name, lines[:sentences])

        records, skipped = journal.each(files, language)
        metrics = ["bits_per_character", "pseudo_perplexity", "unknown"]
        return {"metric": metrics[0], **_averaged(records, skipped, metrics)}

    return _measured(job, {"sentences": sentences}, measure)


def neutrality(job: Job, pivot: str, sentences: int | None) -> dict[str, Any]:
    """How alike translations are at every layer, for each pair of languages; see the module.

    Raises:
      UserError: no file is aligned with that of the pivot.
    """
    lines, skipped = aligned_corpus(job.data, pivot)
    if len(lines) < 2:
        raise UserError(f"{job.data} has no file that is aligned with {pivot}.txt")
    lines = {name: text[:sentences] for name, text in lines.items()}

    def measure(trained: LoadedModel, journal: Journal) -> dict[str, Any]:
        layers = range(trained.config.num_hidden_layers + 1)
        encode = sentence_encoder(trained, layers)
        shape = len(layers), trained.config.hidden_size
        results = evaluate_neutrality(encode, *shape, lines, journal)
        return {**results, "skipped": {**skipped, **results["skipped"]}}

    return _measured(job, {"pivot": pivot, "limit": sentences}, measure)


def geometry(job: Job, references: Sequence[Path], families: Path | None) -> dict[str, Any]:
    """The two tables: coordinates, neighbours, agreement with distances between languages."""
    known = [reference for file in references for reference in read_references(file)]
    family_of = {} if families is None else read_families(families)

    def measure(trained: LoadedModel, journal: Journal) -> dict[str, Any]:
        scripts = scripts_by_language(trained.inventory.language_scripts)
        return tables.geometry(tables.trained_tables(trained), known, family_of, scripts)

    return _measured(job, {}, measure)


def donors(
    job: Job,
    on: str,
    pivot: str,
    names: Sequence[str] | None,
    references: Sequence[Path],
    config: FineTuneConfig,
) -> dict[str, Any]:
    """Which donor each way of choosing takes, and how well its model does on the targets.

    Args:
      on: the task: ``sib200``, ``taxi1500``, ``ner`` or ``pos``.
      names: donors to choose from, beside the pivot; None: all that the model was trained on.
    """
    known = [reference for file in references for reference in read_references(file)]
    read = functools.partial(_read_task, job.data, on)
    settings = {"on": on, "pivot": pivot, "names": names, **dataclasses.asdict(config)}

    def measure(trained: LoadedModel, journal: Journal) -> dict[str, Any]:
        vectors = tables.trained_tables(trained)
        others = names or trained.inventory.language_scripts
        found, skipped = transfer_matrix(trained, on, read, pivot, others, config, journal, _say)
        near = donor_choices.similarities(found.targets, found.donors, vectors, known)
        results = donor_choices.donor_selection(found, near, trained.tokens, pivot)
        return {"on": on, "metric": METRICS[on][0], **results, "skipped": skipped}

    return _measured(job, settings, measure)


def _read_task(data: Path, task: str, source: str) -> TaskData[Any]:
    read = read_tagging_task if task in ("ner", "pos") else read_sentence_task
    return read(data, task, source)


def _measured(job: Job, settings: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    """What ``measure`` gives of the model, written; its finished parts survive an interruption."""
    started, trained = _start(job), load_model(job.model, job.step)
    asked = _asked(job, trained.step)
    with Journal(job.result, {**asked, **settings}) as journal:
        results = measure(trained, journal)
    record = _write(job, started, {**asked, **results})
    journal.forget()
    return record


def _averaged(
    records: list[dict[str, Any]],
    skipped: Mapping[str, str],
    metrics: Sequence[str],
    published: str | None = None,
) -> dict[str, Any]:
    """Raises UserError where there are no records."""
    if not records:
        name, why = next(iter(skipped.items()))
        raise UserError(f"no language could be evaluated; {name}: {why}")
    means = averages(records, metrics, published)
    return {"languages": records, "averages": means, "skipped": dict(skipped)}


def _start(job: Job) -> float:
    if not is_remote(job.result):
        job.result.parent.mkdir(parents=True, exist_ok=True)
    return time.monotonic()


def _asked(job: Job, step: int | None) -> dict[str, Any]:
    data = None if job.data is None else str(job.data)
    return {"task": job.task, "model": str(job.model), "step": step, "data": data}


def _write(job: Job, started: float, record: dict[str, Any]) -> dict[str, Any]:
    record = {**record, "seconds": round(time.monotonic() - started, 1)}
    write_text(job.result, _readable(record))
    _say(job.result)
    return record


def _readable(record: Mapping[str, Any]) -> str:
    """JSON with a line for each field, and for each item of its lists: of many pairs of languages
    and their layers, a number a line would be ten times as much."""
    return "{" + ",".join(f"\n {json.dumps(k)}: {_items(v)}" for k, v in record.items()) + "\n}\n"


def _items(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[" + ",".join("\n  " + json.dumps(item) for item in value) + "\n ]"


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)
