"""What each task of ``langsamp evaluate`` does with its arguments, and shows."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langsamp_jax.io.progress import table

if TYPE_CHECKING:
    from langsamp_jax.evaluation.tasks import Job

_SHOWN = 10  # of the languages that are skipped, with their reasons


def mlm(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluation import tasks

    record = tasks.masked_lm(_job(args))
    headers = {"language": "language", "rows": "rows:,", "targets": "targets:,"}
    headers |= {"loss": "loss:.3f", "unigram_entropy": "unigram entropy:.3f"}
    print(table(record["languages"], headers))
    print(f"all: loss {record['loss']:.3f}, unigram entropy {record['unigram_entropy']:.3f}")


def retrieval(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluation import tasks

    record = tasks.retrieval(_job(args), args.pivot)
    metrics = {"top1": "top-1:.1%", "top5": "top-5:.1%", "top10": "top-10:.1%"}
    chance = {"chance_top1": "chance:.2%", "chance_top10": "chance@10:.2%"}
    _show_languages(record, {"sentences": "sentences:,", **metrics, **chance}, metrics)


def transfer(args: argparse.Namespace) -> None:
    from langsamp_jax.config import from_gin
    from langsamp_jax.evaluation import tasks
    from langsamp_jax.evaluation.finetune import FineTuneConfig
    from langsamp_jax.evaluation.transfer import METRICS

    record = tasks.transfer(_job(args), args.source, from_gin(FineTuneConfig))
    metrics = {}
    for metric in METRICS[args.task]:
        metrics |= {metric: f"{metric}:.3f", f"{metric}_std": "std:.3f"}
    _show_languages(record, {"examples": "examples:,", **metrics}, metrics)


def pseudo_perplexity(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluation import tasks

    record = tasks.pseudo_perplexity(_job(args), args.sentences)
    metrics = {"bits_per_character": "bits a character:.3f"}
    metrics |= {"pseudo_perplexity": "pseudo-perplexity:,.1f", "unknown": "unknown:.1%"}
    _show_languages(record, {"sentences": "sentences:,", **metrics}, metrics)


def neutrality(args: argparse.Namespace) -> None:
    from langsamp_jax.analysis.neutrality import MEASURES
    from langsamp_jax.evaluation import tasks

    record = tasks.neutrality(_job(args), args.pivot, args.sentences)
    rows = [
        {"layer": layer, **{name: record["mean"][name][layer] for name in MEASURES}}
        for layer in range(record["num_layers"])
    ]
    headers = {name: f"{name.replace('_', ' ')}:.3f" for name in MEASURES}
    print(table(rows, {"layer": "layer:d", **headers}))
    print(f"means of {len(record['pairs']):,} pairs of {len(record['languages'])} languages")
    _show_skipped(record)


def geometry(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluation import tasks

    record = tasks.geometry(_job(args), args.references, args.families)
    for kind, found in record["tables"].items():
        shares = " and ".join(f"{share:.0%}" for share in found["explained"])
        print(f"{len(found['names'])} {kind} vectors; two components explain {shares}")
    for found in record["tables"].get("language", {}).get("correlations", ()):
        agreement = found.get("reason")
        if agreement is None:
            agreement = "rho {rho:.3f}, p {p:.4f}, {languages} languages".format(**found)
        print(f"{found['with']}: {agreement}")


def donors(args: argparse.Namespace) -> None:
    from langsamp_jax.config import from_gin
    from langsamp_jax.evaluation import tasks
    from langsamp_jax.evaluation.finetune import FineTuneConfig

    asked = args.on, args.pivot, args.donors, args.references
    record = tasks.donors(_job(args), *asked, from_gin(FineTuneConfig))
    interval = {"low": "from:.3f", "high": "to:.3f"}
    headers = {"choice": "donor by", "targets": "targets:,", "mean": f"{record['metric']}:.3f"}
    print(table(record["choices"], {**headers, **interval}))
    print()
    headers = {"similarity": "similarity", "rho": "rank correlation:.3f", "p": "p:.4f"}
    print(table(record["correlations"], {**headers, **interval}))
    _show_skipped(record)


def _job(args: argparse.Namespace) -> "Job":
    from langsamp_jax.evaluation.tasks import Job

    return Job(args.task, args.model, getattr(args, "data", None), args.step, args.output)


def _show_languages(
    record: Mapping[str, Any], columns: Mapping[str, str], metrics: Mapping[str, str]
) -> None:
    """The languages of a result, and the averages of its metrics over groups of them."""
    print(table(record["languages"], {"language": "language", **columns}))
    print()
    groups = [{"group": group, **means} for group, means in record["averages"].items()]
    print(table(groups, {"group": "average", "languages": "languages:,", **metrics}))
    if cut := sum(language["truncated"] for language in record["languages"]):
        print(f"{cut:,} sentences were longer than model or protocol allow, and were cut")
    _show_skipped(record)


def _show_skipped(record: Mapping[str, Any]) -> None:
    skipped = list(record["skipped"].items())
    for name, why in skipped[:_SHOWN]:
        print(f"skipped {name}: {why}")
    if len(skipped) > _SHOWN:
        print(f"and {len(skipped) - _SHOWN} more, which the result names")
