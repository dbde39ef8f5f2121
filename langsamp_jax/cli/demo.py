"""`langsamp demo`: the whole path on the synthetic world; what came of it as a table and a page."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

from data_pipelines.packing.prepare import prepare
from data_pipelines.synthetic.world import synthesize
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.analysis import geometry, neutrality
from langsamp_jax.data.store import Store
from langsamp_jax.evaluation import jobs, loss, retrieval, transfer
from langsamp_jax.evaluation.config import FineTuneConfig
from langsamp_jax.evaluation.jobs import Job
from langsamp_jax.io.files import write_text
from langsamp_jax.io.progress import table
from langsamp_jax.report.page import write_report
from langsamp_jax.training.config import Configs
from langsamp_jax.training.loop import train

PIVOT = "qaa_Latn"  # the head language of the world; queries are its sentences

_VOCAB_SIZE = 6000
_SEQUENCE_LENGTH = 64
_VALIDATION_FRACTION = 0.05


def demo(output: Path, configs: Configs) -> dict[str, Any]:
    """Synthesizes, trains a tokenizer, prepares, trains, evaluates, reports; prints as it goes.

    Every part goes on from what stands in ``output``. Retrieval uses sentences that were held out
    from the corpus.

    Returns:
      what ``output/results.json`` holds.
    """
    output = Path(output)
    corpus, tokenizer = output / "corpus", output / "tokenizer.model"
    say("1/6", f"a synthetic world of 16 language-scripts -> {corpus}")
    world = synthesize(corpus)
    say("2/6", f"a tokenizer of {_VOCAB_SIZE} pieces -> {tokenizer}")
    if not tokenizer.exists():
        train_tokenizer(corpus, _VOCAB_SIZE, tokenizer)
    say("3/6", f"packed rows of {_SEQUENCE_LENGTH} tokens -> {output / 'store'}")
    prepare(corpus, tokenizer, output / "store", _SEQUENCE_LENGTH, _VALIDATION_FRACTION)
    say("4/6", f"{configs.train.num_steps} steps of training -> {output / 'run'}")
    started = time.perf_counter()
    run = train(Store(output / "store"), output / "run", configs)
    seconds = time.perf_counter() - started
    say("5/6", "validation loss; held-out sentences: retrieval, topics, neutrality; the tables")
    held_out, tree = corpus / "held_out", corpus / "world.json"
    masked_lm = jobs.run(Job("mlm", run.path, output / "store"), loss)
    job = Job("retrieval-bible", run.path, held_out)
    retrieved = jobs.run(job, retrieval, task=job.task, pivot=PIVOT)
    job = Job("sib200", run.path, held_out)
    quick = FineTuneConfig(learning_rate=1e-3, num_epochs=5, num_seeds=1)  # for so small a model
    jobs.run(job, transfer, task=job.task, source=PIVOT, config=quick)
    job = Job("neutrality", run.path, held_out)
    jobs.run(job, neutrality, pivot=PIVOT, sentences=300)
    if configs.model.placement != "none":
        jobs.run(Job("geometry", run.path), geometry, references=[tree], families=tree)

    results = {
        "step": masked_lm["step"],
        "training_seconds": seconds,
        "masked_lm": masked_lm,
        "retrieval": retrieved,
    }
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    print(report(world, results))
    say("6/6", f"a page about it -> {run.path / 'report'}")
    print(f"open {write_report(run.path)}")
    return results


def report(world: dict[str, Any], results: dict[str, Any]) -> str:
    """Returns the results as a table and the two sentences that sum it up."""
    retrieval = {record["language"]: record for record in results["retrieval"]["languages"]}
    records = []
    for record in results["masked_lm"]["languages"]:
        name = record["language"]
        records.append({**record, **retrieval.get(name, {}), **world["language_scripts"][name]})
        records[-1] |= {"language": name, "below": loss.below(record)}  # there a bare code
    headers = {
        "language": "language",
        "family": "family:",
        "sentences": "sentences:,",
        "loss": "validation loss:.3f",
        "unigram_loss": "unigram loss:.3f",
        "below": "below:+.3f",
        "top1": "top-1:.1%",
        "top10": "top-10:.1%",
        "chance_top1": "chance:.1%",
        "chance_top10": "chance@10:.1%",
    }
    mean = {
        key: statistics.mean(record[key] for record in results["retrieval"]["languages"])
        for key in ("top1", "top10", "chance_top1", "chance_top10")
    }
    return "\n".join(
        [
            table(records, headers),
            "",
            f"validation {loss.sentence(results['masked_lm'])}",
            f"retrieval from {results['retrieval']['pivot']}, mean over languages: "
            f"top-1 {mean['top1']:.1%} ({mean['top1'] / mean['chance_top1']:.0f} x chance), "
            f"top-10 {mean['top10']:.1%} ({mean['top10'] / mean['chance_top10']:.0f} x chance)",
        ]
    )


def say(part: str, what: str) -> None:
    print(f"[{part}] {what}", flush=True)
