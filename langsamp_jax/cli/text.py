"""The verbs up to a store and what is drawn from it: synthesize, tokenizer, prepare, mixture."""

import argparse
import contextlib
import json
import shlex
import sys
from typing import Any

from langsamp_jax.cli.parser import (
    add_actions,
    add_gin,
    add_json,
    add_store,
    add_verb,
    refuse,
    show_records,
)
from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import local


def add(commands: Any) -> None:
    """Adds the verbs to the subparsers ``commands``."""
    _add_synthesize(commands)
    _add_tokenizer(commands)
    _add_prepare(commands)
    _add_mixture(commands)


def _add_synthesize(commands: Any) -> None:
    verb = add_verb(
        commands,
        "synthesize",
        synthesize,
        "write a synthetic parallel corpus",
        "--output corpus",
    )
    verb.add_argument("--output", type=local, required=True, metavar="CORPUS")
    verb.add_argument("--languages", type=int, default=16, metavar="N", help="files (default 16)")
    verb.add_argument(
        "--sentences", type=int, default=20_000, metavar="N", help="of the largest (default 20000)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N")


def synthesize(args: argparse.Namespace) -> None:
    """Writes a corpus in the languages of a synthetic world, and shows how much of each."""
    from data_pipelines.synthetic.world import synthesize

    world = synthesize(args.output, args.languages, args.sentences, args.seed)
    records = [{"language": name, **facts} for name, facts in world["language_scripts"].items()]
    headers = {"language": "language", "family": "family:", "word_order": "order"}
    show_records(records, {**headers, "sentences": "sentences:,"}, args.output)


def _add_tokenizer(commands: Any) -> None:
    actions = add_actions(commands, "tokenizer", "train or extend a tokenizer")
    verb = add_verb(
        actions,
        "train",
        tokenizer_train,
        "SentencePiece unigram on a temperature sample, in XLM-R's id layout",
        "--corpus corpus --vocab_size 8000 --output my.model",
    )
    _add_corpus(verb)
    verb.add_argument("--vocab_size", type=int, required=True, metavar="N", help="pieces")
    verb.add_argument("--output", type=local, required=True, metavar="FILE.model")
    _add_sample(verb)

    verb = add_verb(
        actions,
        "extend",
        tokenizer_extend,
        "append pieces for new languages; old ids and scores stay",
        "--base sentencepiece.bpe.model --corpus corpus --new_pieces 20000 --output extended",
    )
    verb.add_argument("--base", type=local, required=True, metavar="FILE.model")
    _add_corpus(verb)
    verb.add_argument("--new_pieces", type=int, required=True, metavar="N", help="to append")
    verb.add_argument("--output", type=local, required=True, metavar="DIR")
    _add_sample(verb)


def _add_corpus(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--corpus", type=local, required=True, help="folder of iso639-3_Script.txt files"
    )


def _add_sample(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--temperature", type=float, default=1 / 0.3, help="default 1/0.3")
    verb.add_argument(
        "--sentences", type=int, default=1_000_000, metavar="N", help="at most (default 1000000)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N")


def tokenizer_train(args: argparse.Namespace) -> None:
    """Trains a tokenizer on a corpus."""
    from data_pipelines.tokenizers.training import train_tokenizer

    tokenizer = train_tokenizer(
        args.corpus, args.vocab_size, args.output, args.temperature, args.sentences, args.seed
    )
    print(f"{args.output}: {args.vocab_size} pieces, {tokenizer.vocab_size} ids")
    _warn_of_export(tokenizer, args.output)


def tokenizer_extend(args: argparse.Namespace) -> None:
    """Extends a tokenizer, and shows how its new rows can begin."""
    from data_pipelines.tokenizers.extension import extend_tokenizer

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


def _add_prepare(commands: Any) -> None:
    verb = add_verb(
        commands,
        "prepare",
        prepare,
        "tokenise and pack text into a store",
        "--corpus corpus --tokenizer my.model --output store",
    )
    verb.add_argument("--output", type=local, required=True, metavar="STORE")
    verb.add_argument("--sequence_length", type=int, metavar="N", help="default 512")
    text = verb.add_mutually_exclusive_group(required=True)
    text.add_argument("--corpus", type=local, help="folder of iso639-3_Script.txt files")
    text.add_argument("--mixture", metavar="NAME", help="a registered seqio Mixture or Task")
    verb.add_argument("--module", metavar="M", help="for a mixture: what registers it")
    corpus = verb.add_argument_group("for a corpus")
    corpus.add_argument(
        "--tokenizer",
        type=local,
        metavar="FILE",
        help="a SentencePiece .model, a tokenizer.json of XLM-R's kind or BERT's, or vocab.txt",
    )
    corpus.add_argument("--validation_fraction", type=float, metavar="F", help="default 0.01")
    corpus.add_argument("--normalization", choices=("NFC", "none"), help="default NFC")
    corpus.add_argument("--duplicates", choices=("drop", "keep"), help="equal lines; default drop")
    corpus.add_argument(
        "--held_out",
        type=local,
        nargs="+",
        metavar="PATH",
        help="evaluation text, files or folders: lines that occur there are left out",
    )
    corpus.add_argument(
        "--add_to",
        type=local,
        metavar="STORE",
        help="a store that comes first, with its tokenizer and settings; it is not changed",
    )
    work = verb.add_argument_group("how it is done")
    work.add_argument(
        "--skip_damaged", action="store_true", help="leave out, and count, what cannot be read"
    )
    work.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    work.add_argument("--runner", choices=("local", "beam"), default="local")
    work.add_argument(
        "--beam_options", metavar="'...'", help="for Beam: '--runner=FlinkRunner ...'"
    )


def prepare(args: argparse.Namespace) -> None:
    """Makes a store, and shows what is in it and what was wrong with the text."""
    from data_pipelines.corpus.cleaning import CLEANING_COLUMNS, warnings
    from data_pipelines.corpus.held_out import matches_shown
    from data_pipelines.packing.provenance import Provenance

    with contextlib.closing(_runner(args)) as runner:
        manifest = _prepared(args, runner)
    records, provenance = [], Provenance.load(args.output)
    report = provenance.report
    for name in manifest.names:
        train, validation = manifest.counts["train"][name], manifest.counts["validation"][name]
        text = report[name].get("text") or {"pieces": train.tokens, "unknown": train.unknown}
        unknown = text["unknown"] / max(1, text["pieces"])
        counts = {"lines": train.lines, "tokens": train.tokens, "rows": train.rows}
        records.append(
            {"language": name, **counts, "unknown": unknown, "validation": validation.rows}
        )
    headers = {"language": "language", "lines": "lines:,", "tokens": "tokens:,", "rows": "rows:,"}
    headers |= {"unknown": "unknown:.2%", "validation": "validation rows:,"}
    show_records(records, headers, args.output)
    for name, why in manifest.skipped.items():
        print(f"skipped {name}: {why}")
    hygiene = {name: facts["hygiene"] for name, facts in report.items()}
    columns = {
        column: header
        for column, header in CLEANING_COLUMNS.items()
        if any(counts.get(column) for counts in hygiene.values())
    }
    records = [
        {"language": name, **counts}
        for name, counts in hygiene.items()
        if any(counts.get(column) for column in columns if column != "lines")
    ]
    if records:
        print("\nlines that were not as they should be:")
        show_records(records, {"language": "language", **columns}, f"{args.output}/origin.json")
    for line in warnings(report):
        print(line)
    for line in matches_shown(provenance.held_out) if provenance.held_out else ():
        print(line)
    if args.mixture:
        print(f"the rates of {args.mixture}: --gin_file {args.output / 'mixture.gin'}")


def _prepared(args: argparse.Namespace, runner: Any) -> Any:
    """Makes the store from the one of three kinds of input that the arguments name."""
    from data_pipelines.corpus.cleaning import CleaningConfig
    from data_pipelines.packing.prepare import grow, prepare
    from langsamp_jax.text.tokenizer import load_tokenizer

    options = {"skip_damaged": args.skip_damaged, "runner": runner}
    if args.add_to:
        settings = ("tokenizer", "sequence_length", "validation_fraction")
        refuse(args, "--add_to", *settings, "normalization", "duplicates", "mixture", "module")
        return grow(args.add_to, args.corpus, args.output, args.held_out or (), **options)
    if args.sequence_length is not None:
        options["sequence_length"] = args.sequence_length
    if args.mixture:
        settings = ("tokenizer", "validation_fraction", "normalization", "duplicates", "held_out")
        refuse(args, "--mixture", *settings)
        from data_pipelines.seqio_tasks.compile import prepare_mixture
        from langsamp_jax.data.store import Store

        manifest = prepare_mixture(args.mixture, args.module, args.output, **options)
        _warn_of_export(Store(args.output).tokenizer(), args.mixture)
        return manifest
    if args.tokenizer is None:
        raise UserError("prepare --corpus needs --tokenizer FILE")
    refuse(args, "--corpus", "module")
    if args.validation_fraction is not None:
        options["validation_fraction"] = args.validation_fraction
    given = {"normalization": args.normalization, "duplicates": args.duplicates}
    options["cleaning"] = CleaningConfig(**{name: value for name, value in given.items() if value})
    options["held_out"] = args.held_out or ()
    _warn_of_export(load_tokenizer(args.tokenizer), args.tokenizer)
    return prepare(args.corpus, args.tokenizer, args.output, **options)


def _warn_of_export(tokenizer: Any, source: object) -> None:
    """Says on standard error where a model with this tokenizer cannot be exported."""
    from langsamp_jax.text.huggingface_files import export_fault

    if (fault := export_fault(tokenizer)) is not None:
        print(f"{source} {fault}; models with it cannot be exported", file=sys.stderr)


def _runner(args: argparse.Namespace) -> Any:
    from data_pipelines.packing.runner import LocalRunner

    if args.runner == "beam":
        from data_pipelines.packing.beam import BeamRunner

        refuse(args, "--runner beam", "workers")
        try:
            return BeamRunner(shlex.split(args.beam_options or ""))
        except ValueError as error:
            raise UserError(f"--beam_options {args.beam_options}: {error}") from None
    refuse(args, "--runner local", "beam_options")
    return LocalRunner(args.workers)


def _add_mixture(commands: Any) -> None:
    verb = add_verb(commands, "mixture", mixture, "show the rate of each language", "--data store")
    add_store(verb)
    add_gin(verb)
    add_json(verb)
    verb.add_argument(
        "--plot", type=local, metavar="FILE", help="draw it too: FILE.png, FILE.svg or FILE.pdf"
    )


def mixture(args: argparse.Namespace) -> None:
    """Shows, and draws, the rates that the gin settings give on a store."""
    from langsamp_jax.data.mixture_report import mixture_report, mixture_table
    from langsamp_jax.data.store import Store
    from langsamp_jax.training.config import configs_from_gin

    if args.plot:
        from langsamp_jax.report.mixture_plot import plot_mixture, require_plot

        require_plot(args.plot)
    configs, manifest = configs_from_gin(), Store(args.data).manifest
    plan = configs.train.num_steps, configs.train.global_batch_size
    sampler = configs.mixture.sampler(manifest, configs.train.seed, *plan)
    records = mixture_table(manifest, sampler, *plan)
    if args.json:
        print(json.dumps(records, indent=1))
    else:
        print(mixture_report(configs.mixture, manifest, sampler, *plan))
    if args.plot:
        plot_mixture(records, plan[0], args.plot)
        print(args.plot, file=sys.stderr)
