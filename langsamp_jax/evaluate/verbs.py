"""What each task of ``langsamp evaluate`` does with its arguments."""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.files import write_text
from langsamp_jax.progress import table
from langsamp_jax.storage import is_remote

_SHOWN = 10  # of the languages that are skipped, with their reasons


def mlm(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluate.masked_lm import evaluate_masked_lm
    from langsamp_jax.run import open_run
    from langsamp_jax.store import Store

    run = open_run(args.model)
    output = _output(args)
    step, params = run.load_params(args.step)
    results = evaluate_masked_lm(run, params, Store(args.data))
    _write(output, {"task": "mlm", "step": step, **results})
    headers = {"language": "language", "rows": "rows:,", "targets": "targets:,"}
    headers |= {"loss": "loss:.3f", "unigram_entropy": "unigram entropy:.3f"}
    print(table(results["languages"], headers))
    print(f"all: loss {results['loss']:.3f}, unigram entropy {results['unigram_entropy']:.3f}")
    print(output)


def retrieval(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluate.encoder import sentence_encoder
    from langsamp_jax.evaluate.retrieval import evaluate_pairs, folder_pairs, protocol_layer
    from langsamp_jax.evaluate.sentence_pairs import read_sentence_pairs

    read = read_sentence_pairs if args.task == "retrieval-tatoeba" else folder_pairs
    pairs, skipped = read(args.data, args.pivot)
    if not pairs:
        raise UserError(f"{args.data} has no sentences that are aligned with {args.pivot}")

    def measure(trained: Any, journal: Any) -> dict[str, Any]:
        layer = protocol_layer(trained)
        encode = sentence_encoder(trained, [layer])
        records, unread = evaluate_pairs(encode, args.pivot, pairs, journal)
        settings = {"metric": "top10", "pivot": args.pivot, "layer": layer}
        return {**settings, "languages": records, "skipped": {**skipped, **unread}}

    metrics = {"top1": "top-1:.1%", "top5": "top-5:.1%", "top10": "top-10:.1%"}
    chance = {"chance_top1": "chance:.2%", "chance_top10": "chance@10:.2%"}
    _by_language(args, {"pivot": args.pivot}, measure, "sentences", metrics, chance)


def transfer(args: argparse.Namespace) -> None:
    import dataclasses

    from langsamp_jax.evaluate.finetune import FineTuneConfig
    from langsamp_jax.evaluate.sentence_data import read_sentence_task
    from langsamp_jax.evaluate.tagged_data import read_tagging_task
    from langsamp_jax.evaluate.transfer import METRICS, evaluate_transfer

    config = FineTuneConfig()
    read = read_tagging_task if args.task in ("ner", "pos") else read_sentence_task
    data = read(args.data, args.task, args.source)
    settings = {"source": args.source, **dataclasses.asdict(config)}

    def measure(trained: Any, journal: Any) -> dict[str, Any]:
        return evaluate_transfer(trained, args.task, data, args.source, config, journal, _say)

    metrics = {}
    for metric in METRICS[args.task]:
        metrics |= {metric: f"{metric}:.3f", f"{metric}_std": "std:.3f"}
    _by_language(args, settings, measure, "examples", metrics)


def pseudo_perplexity(args: argparse.Namespace) -> None:
    from langsamp_jax.corpus import aligned_lines, corpus_files
    from langsamp_jax.evaluate.pseudo_perplexity import pseudo_perplexity

    files = corpus_files(args.data)

    def measure(trained: Any, journal: Any) -> dict[str, Any]:
        measured = pseudo_perplexity(trained)

        def language(name: str) -> dict[str, Any]:
            lines = [line for line in aligned_lines(files[name]) if line]
            return measured(name, lines[: args.sentences])

        records, skipped = journal.each("languages", files, language)
        return {"metric": "bits_per_character", "languages": records, "skipped": skipped}

    metrics = {"bits_per_character": "bits a character:.3f"}
    metrics |= {"pseudo_perplexity": "pseudo-perplexity:,.1f", "unknown": "unknown:.1%"}
    _by_language(args, {"sentences": args.sentences}, measure, "sentences", metrics)


def neutrality(args: argparse.Namespace) -> None:
    from langsamp_jax.corpus import aligned_corpus
    from langsamp_jax.evaluate.encoder import sentence_encoder
    from langsamp_jax.evaluate.neutrality import MEASURES, evaluate_neutrality

    lines, skipped = aligned_corpus(args.data, args.pivot)
    if len(lines) < 2:
        raise UserError(f"{args.data} has no file that is aligned with {args.pivot}.txt")
    lines = {name: text[: args.sentences] for name, text in lines.items()}

    def measure(trained: Any, journal: Any) -> dict[str, Any]:
        layers = range(trained.config.num_hidden_layers + 1)
        encode = sentence_encoder(trained, layers)
        shape = len(layers), trained.config.hidden_size
        results = evaluate_neutrality(encode, *shape, lines, journal)
        return {**results, "skipped": {**skipped, **results["skipped"]}}

    record = _measured(args, {"pivot": args.pivot, "limit": args.sentences}, measure)
    means = record["mean"]
    rows = [
        {"layer": layer, **{name: means[name][layer] for name in MEASURES}}
        for layer in range(record["num_layers"])
    ]
    headers = {name: f"{name.replace('_', ' ')}:.3f" for name in MEASURES}
    print(table(rows, {"layer": "layer:d", **headers}))
    print(f"means of {len(record['pairs']):,} pairs of {len(record['languages'])} languages")
    _say_skipped(record)


def geometry(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluate.geometry import geometry, trained_tables

    references, families = _references(args), _families(args)

    def measure(trained: Any, journal: Any) -> dict[str, Any]:
        tables = trained_tables(trained)
        return {**geometry(tables, references, families), "skipped": {}}

    record = _measured(args, {"references": list(map(str, args.references or ()))}, measure)
    for kind, found in record["tables"].items():
        shares = " and ".join(f"{share:.0%}" for share in found["explained"])
        print(f"{len(found['names'])} {kind} vectors; two components explain {shares}")
    for found in record["tables"].get("language", {}).get("correlations", ()):
        if found["rho"] is None:
            print(f"{found['with']}: {found['reason']}")
        else:
            print(
                f"{found['with']}: rho {found['rho']:.3f}, p {found['p']:.4f}, "
                f"{found['languages']} languages"
            )


def donors(args: argparse.Namespace) -> None:
    import dataclasses

    from langsamp_jax.evaluate.donors import donor_selection, similarities
    from langsamp_jax.evaluate.finetune import FineTuneConfig
    from langsamp_jax.evaluate.geometry import trained_tables
    from langsamp_jax.evaluate.sentence_data import read_sentence_task
    from langsamp_jax.evaluate.transfer import METRICS, transfer_matrix

    config, references = FineTuneConfig(), _references(args)
    read = functools.partial(read_sentence_task, args.data, args.on)
    settings = {"on": args.on, "pivot": args.pivot, "donors": args.donors}
    settings |= dataclasses.asdict(config)

    def measure(trained: Any, journal: Any) -> dict[str, Any]:
        names = args.donors or trained.inventory.language_scripts
        sources = dict.fromkeys([args.pivot, *names])
        found, skipped = transfer_matrix(trained, args.on, read, sources, config, journal, _say)
        near = similarities(found.targets, found.donors, trained_tables(trained), references)
        results = donor_selection(found, near, trained.tokens, args.pivot)
        return {"on": args.on, "metric": METRICS[args.on][0], **results, "skipped": skipped}

    record = _measured(args, settings, measure)
    headers = {"choice": "donor by", "targets": "targets:,", "mean": "score:.3f"}
    print(table(record["choices"], {**headers, "low": "from:.3f", "high": "to:.3f"}))
    print()
    headers = {"similarity": "similarity", "rho": "rank correlation:.3f", "p": "p:.4f"}
    print(table(record["correlations"], {**headers, "low": "from:.3f", "high": "to:.3f"}))
    _say_skipped(record)


def _references(args: argparse.Namespace) -> list[Any]:
    from langsamp_jax.evaluate.typology import read_references

    return [reference for file in args.references or () for reference in read_references(file)]


def _families(args: argparse.Namespace) -> Mapping[str, str]:
    from langsamp_jax.evaluate.typology import read_families

    return {} if args.families is None else read_families(args.families)


def _by_language(
    args: argparse.Namespace,
    settings: Mapping[str, Any],
    measure: Callable[[Any, Any], dict[str, Any]],
    counted: str,
    metrics: Mapping[str, str],
    more: Mapping[str, str] | None = None,
) -> None:
    """Runs a task that gives a record for each language, and shows them with their averages.

    Args:
      counted: the field that says how much there was of a language.
      metrics: the fields that are averaged over languages, with their titles and formats.
    """
    from langsamp_jax.evaluate.groups import averages

    def measured(trained: Any, journal: Any) -> dict[str, Any]:
        results = measure(trained, journal)
        if not results["languages"]:
            name, why = next(iter(results["skipped"].items()))
            raise UserError(f"no language could be evaluated; {name}: {why}")
        if "averages" not in results:  # those over seeds have their own
            results["averages"] = averages(results["languages"], list(metrics))
        return results

    record = _measured(args, settings, measured)
    headers = {"language": "language", counted: f"{counted}:,", **metrics, **(more or {})}
    print(table(record["languages"], headers))
    groups = [
        {"group": group.replace("_", "-"), **means} for group, means in record["averages"].items()
    ]
    print()
    print(table(groups, {"group": "average", "languages": "languages:,", **metrics}))
    if cut := sum(language["truncated"] for language in record["languages"]):
        print(f"{cut:,} were longer than the model or the protocol allows, and were cut")
    _say_skipped(record)


def _measured(
    args: argparse.Namespace,
    settings: Mapping[str, Any],
    measure: Callable[[Any, Any], dict[str, Any]],
) -> dict[str, Any]:
    """What ``measure`` gives of the model, written to the output; parts survive an interruption."""
    from langsamp_jax.evaluate.journal import Journal
    from langsamp_jax.evaluate.trained import open_trained

    started, output = time.monotonic(), _output(args)
    trained = open_trained(args.model, args.step)
    asked = {"task": args.task, "model": str(args.model), "step": trained.step}
    if "data" in args:
        asked["data"] = str(args.data)
    with Journal(output, {**asked, **settings}) as journal:
        results = measure(trained, journal)
    record = {**asked, **results, "seconds": round(time.monotonic() - started, 1)}
    _write(output, record)
    journal.forget()
    print(output, file=sys.stderr)
    return record


def _output(args: argparse.Namespace) -> Path:
    """Where the result goes: the folder of the run, where nothing is said and the model is one.

    Raises:
      UserError: it cannot be a file; said before the work is done, not after.
    """
    output = args.output
    if output is None:
        if not (args.model / "run.json").exists():
            raise UserError(f"{args.model} is no run; say where the result goes with --output")
        output = args.model / "evaluation" / f"{args.task}.json"
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name the .json file to write")
    if not is_remote(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _write(output: Path, record: Mapping[str, Any]) -> None:
    write_text(output, json.dumps(record, indent=1) + "\n")


_say = functools.partial(print, file=sys.stderr)


def _say_skipped(record: Mapping[str, Any]) -> None:
    skipped: Sequence[tuple[str, str]] = list(record["skipped"].items())
    for name, why in skipped[:_SHOWN]:
        print(f"skipped {name}: {why}")
    if len(skipped) > _SHOWN:
        print(f"and {len(skipped) - _SHOWN} more, see the result")
