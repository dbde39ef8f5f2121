"""What each verb of the ``langsamp`` command does with its arguments.

Libraries are imported where a verb needs them, so that ``--help`` answers at once.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError


def demo(args: argparse.Namespace) -> None:
    from data_pipelines.demo import demo
    from langsamp_jax.train import Configs

    demo(args.output, Configs())


def synthesize(args: argparse.Namespace) -> None:
    from data_pipelines.synthetic import synthesize

    world = synthesize(args.output, args.languages, args.sentences, args.seed)
    records = [{"language": name, **facts} for name, facts in world["language_scripts"].items()]
    headers = {"language": "language", "family": "family:", "word_order": "order"}
    _show(records, {**headers, "sentences": "sentences:,"}, args.output)


def tokenizer_train(args: argparse.Namespace) -> None:
    from data_pipelines.tokenizer_training import train_tokenizer

    tokenizer = train_tokenizer(
        args.corpus, args.vocab_size, args.output, args.temperature, args.sentences, args.seed
    )
    print(f"{args.output}: {args.vocab_size} pieces, {tokenizer.vocab_size} ids")


def tokenizer_extend(args: argparse.Namespace) -> None:
    from data_pipelines.tokenizer_extension import extend_tokenizer

    tokenizer, rows = extend_tokenizer(
        args.base,
        args.corpus,
        args.new_pieces,
        args.output,
        args.temperature,
        args.sentences,
        args.seed,
    )
    old = tokenizer.vocab_size - args.new_pieces
    print(f"{args.output}: {old:,} ids before, {tokenizer.vocab_size:,} now")
    print(f"{old:,} rows are carried over, {len(rows.spelled):,} are a mean of old ones, ", end="")
    print(f"{rows.unspelled:,} have an unknown part")


def prepare(args: argparse.Namespace) -> None:
    from data_pipelines.prepare import prepare

    manifest = prepare(
        args.corpus, args.tokenizer, args.output, args.sequence_length, args.validation_fraction
    )
    records = []
    for name in manifest.names:
        train, validation = manifest.counts["train"][name], manifest.counts["validation"][name]
        unknown = train.unknown / max(1, train.tokens)
        counts = {"lines": train.lines, "tokens": train.tokens, "rows": train.rows}
        records.append(
            {"language": name, **counts, "unknown": unknown, "validation": validation.rows}
        )
    headers = {"language": "language", "lines": "lines:,", "tokens": "tokens:,", "rows": "rows:,"}
    headers |= {"unknown": "unknown:.2%", "validation": "validation rows:,"}
    _show(records, headers, args.output)
    for name, why in manifest.skipped.items():
        print(f"skipped {name}: {why}")


def mixture(args: argparse.Namespace) -> None:
    from langsamp_jax.mixture import MIXTURE_COLUMNS, mixture_table
    from langsamp_jax.store import Store
    from langsamp_jax.train import Configs

    configs, manifest = Configs(), Store(args.data).manifest
    sampler = configs.mixture.sampler(manifest, configs.train.seed)
    planned = configs.train.num_steps * configs.train.global_batch_size
    records = mixture_table(manifest, sampler, planned)
    if args.json:
        print(json.dumps(records, indent=1))
    else:
        _show(records, MIXTURE_COLUMNS, f"{planned:,} rows planned")


def train(args: argparse.Namespace) -> None:
    from langsamp_jax.dry_run import dry_run
    from langsamp_jax.train import Configs, train

    configs = Configs()
    if args.dry_run:
        print(dry_run(args.data, configs, args.init_from))
        return
    if args.output is None:
        raise UserError("train needs --output RUN (or --dry_run)")
    run = train(args.data, args.output, configs, args.init_from)
    print(f"{run.path}: evaluate it with langsamp evaluate, or give the same command to go on")


def export(args: argparse.Namespace) -> None:
    from langsamp_jax.huggingface.export import export
    from langsamp_jax.run import open_run

    step = export(open_run(args.run), args.output, args.step, args.fold, args.full)
    print(f"{args.output}: step {step:,} of {args.run}, for transformers; see its README.md")


def languages_add(args: argparse.Namespace) -> None:
    from langsamp_jax.huggingface.languages import add_languages

    records = add_languages(
        args.model, args.languages, args.start, args.output, args.families, args.seed
    )
    _show(
        records, {"table": "table", "row": "row:,", "code": "code", "start": "start"}, args.output
    )


def evaluate_mlm(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluate.masked_lm import evaluate_masked_lm
    from langsamp_jax.run import open_run
    from langsamp_jax.store import Store

    _require_file(args.output)
    run = open_run(args.model)
    step, params = run.load_params(args.step)
    results = evaluate_masked_lm(run, params, Store(args.data))
    headers = {"language": "language", "rows": "rows:,", "targets": "targets:,"}
    headers |= {"loss": "loss:.3f", "unigram_entropy": "unigram entropy:.3f"}
    _write_json(args.output, {"task": "mlm", "step": step, **results})
    _show(results["languages"], headers, args.output)
    print(f"all: loss {results['loss']:.3f}, unigram entropy {results['unigram_entropy']:.3f}")


def evaluate_retrieval(args: argparse.Namespace) -> None:
    from langsamp_jax.evaluate.retrieval import evaluate_retrieval, run_encoder
    from langsamp_jax.run import open_run

    _require_file(args.output)
    run = open_run(args.model)
    step, params = run.load_params(args.step)
    embed = run_encoder(run, params)
    records = evaluate_retrieval(embed, args.data, args.pivot)
    headers = {"language": "language", "sentences": "sentences:,", "top1": "top-1:.1%"}
    headers |= {"top10": "top-10:.1%", "chance_top1": "chance:.2%", "chance_top10": "chance@10:.2%"}
    _write_json(
        args.output, {"task": "retrieval", "step": step, "pivot": args.pivot, "languages": records}
    )
    _show(records, headers, args.output)


def _show(records: Sequence[Mapping[str, Any]], headers: Mapping[str, str], where: object) -> None:
    from langsamp_jax.progress import table

    print(table(records, headers))
    print(where)


def _require_file(path: Path) -> None:
    """Refuses an output that cannot be a file before the work is done, not after."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name the .json file to write")
    path.parent.mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, value: object) -> None:
    from langsamp_jax.files import write_text

    write_text(path, json.dumps(value, indent=1) + "\n")
