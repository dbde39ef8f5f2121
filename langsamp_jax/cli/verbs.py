"""What each verb of the ``langsamp`` command does with its arguments.

Libraries are imported where a verb needs them, so that ``--help`` answers at once.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from langsamp_jax.errors import UserError


def demo(args: argparse.Namespace) -> None:
    from langsamp_jax.cli.demo import demo
    from langsamp_jax.training.config import configs_from_gin

    demo(args.output, configs_from_gin())


def synthesize(args: argparse.Namespace) -> None:
    from data_pipelines.synthetic.world import synthesize

    world = synthesize(args.output, args.languages, args.sentences, args.seed)
    records = [{"language": name, **facts} for name, facts in world["language_scripts"].items()]
    headers = {"language": "language", "family": "family:", "word_order": "order"}
    _show(records, {**headers, "sentences": "sentences:,"}, args.output)


def tokenizer_train(args: argparse.Namespace) -> None:
    from data_pipelines.tokenizers.training import train_tokenizer

    tokenizer = train_tokenizer(
        args.corpus, args.vocab_size, args.output, args.temperature, args.sentences, args.seed
    )
    print(f"{args.output}: {args.vocab_size} pieces, {tokenizer.vocab_size} ids")


def tokenizer_extend(args: argparse.Namespace) -> None:
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


def prepare(args: argparse.Namespace) -> None:
    from data_pipelines.corpus.cleaning import HYGIENE_COLUMNS, warnings
    from data_pipelines.packing.provenance import Provenance

    with contextlib.closing(_runner(args)) as runner:
        manifest = _prepared(args, runner)
    records, report = [], Provenance.load(args.output).report
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
    met = {name: facts["hygiene"] for name, facts in report.items()}
    columns = {k: v for k, v in HYGIENE_COLUMNS.items() if any(c.get(k) for c in met.values())}
    records = [
        {"language": name, **counts}
        for name, counts in met.items()
        if any(counts.get(column) for column in columns if column != "lines")
    ]
    if records:
        print("\nlines that were not as they should be:")
        _show(records, {"language": "language", **columns}, f"{args.output}/origin.json")
    for line in warnings(report):
        print(line)
    if args.mixture:
        print(f"the rates of {args.mixture}: --gin_file {args.output / 'mixture.gin'}")


def _prepared(args: argparse.Namespace, runner: Any) -> Any:
    """Makes the store of the one of the three kinds of input that the arguments name."""
    from data_pipelines.corpus.cleaning import Hygiene
    from data_pipelines.packing.prepare import grow, prepare

    options = {"skip_damaged": args.skip_damaged, "runner": runner}
    if args.add_to:
        settings = ("tokenizer", "sequence_length", "validation_fraction")
        _refuse(args, "--add_to", *settings, "normalization", "duplicates", "mixture", "module")
        return grow(args.add_to, args.corpus, args.output, args.held_out or (), **options)
    if args.sequence_length is not None:
        options["sequence_length"] = args.sequence_length
    if args.mixture:
        settings = ("tokenizer", "validation_fraction", "normalization", "duplicates", "held_out")
        _refuse(args, "--mixture", *settings)
        from data_pipelines.seqio_tasks.compile import prepare_mixture

        return prepare_mixture(args.mixture, args.module, args.output, **options)
    if args.tokenizer is None:
        raise UserError("prepare --corpus needs --tokenizer FILE")
    _refuse(args, "--corpus", "module")
    if args.validation_fraction is not None:
        options["validation_fraction"] = args.validation_fraction
    given = {"normalization": args.normalization, "duplicates": args.duplicates}
    options["hygiene"] = Hygiene(**{name: value for name, value in given.items() if value})
    options["held_out"] = args.held_out or ()
    return prepare(args.corpus, args.tokenizer, args.output, **options)


def _runner(args: argparse.Namespace) -> Any:
    from data_pipelines.packing.runner import LocalRunner

    if args.runner == "beam":
        from data_pipelines.packing.beam import BeamRunner

        _refuse(args, "--runner beam", "workers")
        try:
            return BeamRunner(shlex.split(args.beam_options or ""))
        except ValueError as error:
            raise UserError(f"--beam_options {args.beam_options}: {error}") from None
    _refuse(args, "--runner local", "beam_options")
    return LocalRunner(args.workers)


def _refuse(args: argparse.Namespace, option: str, *names: str) -> None:
    """Raises UserError where arguments are given that do not go with ``option``."""
    if given := [f"--{name}" for name in names if getattr(args, name) is not None]:
        raise UserError(f"{', '.join(given)} cannot be given with {option}")


def mixture(args: argparse.Namespace) -> None:
    from langsamp_jax.data.mixture import mixture_report, mixture_table
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


def inspect(args: argparse.Namespace) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # a look takes no device away from a training
    from langsamp_jax.cli.inspect import inspect_rows, legend, record, show
    from langsamp_jax.data.store import Store
    from langsamp_jax.training.config import configs_from_gin

    store, configs = Store(args.data), configs_from_gin()
    title, rows = inspect_rows(store, configs, args.language, args.step, args.split, args.rows)
    tokenizer = store.tokenizer()
    if args.json:
        print(json.dumps([record(row, tokenizer) for row in rows], indent=1))
        return
    sys.stdout.reconfigure(errors="backslashreplace")  # text in any script, terminals of any kind
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = [title, *(show(row, tokenizer, args.ids, colours) for row in rows)]
    print("\n\n".join([*shown, legend(tokenizer, colours)]))


def train(args: argparse.Namespace) -> None:
    from langsamp_jax.data.store import Store
    from langsamp_jax.training.config import configs_from_gin
    from langsamp_jax.training.dry_run import dry_run
    from langsamp_jax.training.loop import train

    if args.data:
        _refuse(args, "--data", "module", "sequence_length")
    if args.dry_run:
        if args.mixture:
            raise UserError("--dry_run looks at a store; make one: langsamp prepare --mixture")
        print(dry_run(args.data, configs_from_gin(), args.init_from))
        return
    if args.output is None:
        raise UserError("train needs --output RUN (or --dry_run)")
    data, configs = _live(args) if args.mixture else (Store(args.data), configs_from_gin())
    run = train(data, args.output, configs, args.init_from)
    print(f"{run.path}: evaluate it with langsamp evaluate, or give the same command to go on")


def _live(args: argparse.Namespace) -> tuple[Any, Any]:
    """The Mixture that the arguments name, as data to train on, and the configs with its rates."""
    from data_pipelines.seqio_tasks.live import MANY_TASKS, LiveMixture
    from data_pipelines.seqio_tasks.registry import open_mixture
    from langsamp_jax.training.config import configs_from_gin

    mixture = open_mixture(args.mixture, args.module)
    print(f"the rates are those of {args.mixture}, whatever mixture.rule says", file=sys.stderr)
    if mixture.num_tasks > MANY_TASKS:
        print(
            f"{mixture.num_tasks} tasks are many to read at once: prepare --mixture makes a store "
            "of them, which is faster to start and to read",
            file=sys.stderr,
        )
    configs = configs_from_gin()
    rates = dataclasses.replace(configs.mixture, rule="weights", weights=mixture.weights)
    configs = dataclasses.replace(configs, mixture=rates)
    length = 512 if args.sequence_length is None else args.sequence_length
    return LiveMixture(mixture, length, configs.train.seed, configs.train.eval_rows), configs


def plan(args: argparse.Namespace) -> None:
    from langsamp_jax.data.store import Store
    from langsamp_jax.plan.record import plan
    from langsamp_jax.plan.report import show
    from langsamp_jax.plan.search import largest_batch
    from langsamp_jax.plan.topology import topology_devices
    from langsamp_jax.training.config import configs_from_gin
    from langsamp_jax.training.setup import Sizes, table_rows

    names = ("vocab_size", "languages", "scripts", "sequence_length")
    if args.data:
        _refuse(args, "--data", *names)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    sizes = Sizes(**given)
    if args.data:
        store = Store(args.data)
        sizes = Sizes.of(store, table_rows(store, None))
    configs, devices = configs_from_gin(), topology_devices(args.topology)
    print(f"compiling for {len(devices)} devices: minutes, for a large model", file=sys.stderr)
    if args.find_batch:
        found = largest_batch(configs, sizes, devices, functools.partial(print, file=sys.stderr))
    else:
        found = plan(configs, sizes, devices)
    record = {"topology": args.topology, **found}
    print(json.dumps(record, indent=1) if args.json else show(record))


def compare(args: argparse.Namespace) -> None:
    from langsamp_jax.io.files import write_text
    from langsamp_jax.io.progress import table
    from langsamp_jax.report.compare import compare

    found = compare(args.runs)
    headers = {"measure": "measure", "variant": "variant", "seeds": "seeds:d", "mean": "mean:.4f"}
    headers |= {"std": "std:.4f", "difference": "difference:+.4f"}
    records = [one for one in found["measures"] if args.measures in one["measure"]]
    print(table(records, {**headers, "low": "from:+.4f", "high": "to:+.4f"}))
    for task, places in found["data"].items():
        if len(places) > 1:
            print(f"{task}: not all runs were evaluated on the same data: {', '.join(places)}")
    if args.output:
        write_text(args.output, json.dumps(found, indent=1) + "\n")
        print(args.output)


def export(args: argparse.Namespace) -> None:
    from langsamp_jax.training.export import export_run
    from langsamp_jax.training.run import open_run

    step = export_run(open_run(args.run), args.output, args.step, args.fold, args.full)
    print(f"{args.output}: step {step:,} of {args.run}, for transformers; see its README.md")


def languages_add(args: argparse.Namespace) -> None:
    from langsamp_jax.huggingface.add_languages import add_languages

    records = add_languages(
        args.model, args.languages, args.start, args.output, args.families, args.seed
    )
    _show(
        records, {"table": "table", "row": "row:,", "code": "code", "start": "start"}, args.output
    )


def report(args: argparse.Namespace) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # a look takes no device away from a training
    from langsamp_jax.report.page import write_report

    print(write_report(args.run))


def _show(records: Sequence[Mapping[str, Any]], headers: Mapping[str, str], where: object) -> None:
    from langsamp_jax.io.progress import table

    print(table(records, headers))
    print(where)
