"""The verbs for trained models and their results: export, languages, compare, report."""

import argparse
import json
from typing import Any

from langsamp_jax.cli.parser import add_actions, add_edits, add_verb, show_records
from langsamp_jax.io.storage import local, location


def add(commands: Any) -> None:
    """Adds the verbs to the subparsers ``commands``."""
    _add_export(commands)
    _add_languages(commands)
    _add_compare(commands)
    _add_report(commands)


def _add_export(commands: Any) -> None:
    verb = add_verb(
        commands,
        "export",
        export,
        "write a trained model for PyTorch, as a Hugging Face folder",
        "--run run --output hf_model --fold deu_Latn",
    )
    verb.add_argument("--run", type=location, required=True, metavar="RUN")
    verb.add_argument("--output", type=location, required=True, metavar="HF_DIR")
    verb.add_argument("--step", type=int, metavar="N", help="a saved step (default: the best)")
    form = verb.add_mutually_exclusive_group()
    form.add_argument(
        "--fold", metavar="NAME", help="a language-script whose vectors go into the plain head"
    )
    form.add_argument(
        "--full", action="store_true", help="with the two tables, and the code that they need"
    )
    add_edits(verb)


def export(args: argparse.Namespace) -> None:
    """Writes a checkpoint of a run as a Hugging Face folder."""
    from langsamp_jax.evaluation.encoder import reference_means
    from langsamp_jax.evaluation.model import load_model
    from langsamp_jax.io.files import require_absent
    from langsamp_jax.models.edits import parse_edit
    from langsamp_jax.training.export import export_run
    from langsamp_jax.training.run import open_run

    edits, means = [parse_edit(text) for text in args.edit], {}
    if edits:
        require_absent(args.output)
        means = reference_means(load_model(args.run, args.step), edits, args.reference)
    form = args.step, args.fold, args.full, edits, means
    step = export_run(open_run(args.run), args.output, *form)
    print(f"{args.output}: step {step:,} of {args.run}, for transformers; see its README.md")


def _add_languages(commands: Any) -> None:
    actions = add_actions(commands, "languages", "change a model's languages")
    verb = add_verb(
        actions,
        "add",
        languages_add,
        "append rows to the two tables of a full export",
        "--model hf_full --languages quy_Latn ayr_Latn --start script --output hf_more",
    )
    verb.add_argument("--model", type=local, required=True, metavar="HF_DIR")
    verb.add_argument("--languages", nargs="+", required=True, metavar="NAME")
    verb.add_argument(
        "--start",
        required=True,
        metavar="HOW",
        help="first values: script or family (the mean of the model's languages of the same), "
        "a language-script of the model, or random",
    )
    verb.add_argument(
        "--families", type=local, metavar="FILE.tsv", help="a line a language: its code, its family"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of random values")
    verb.add_argument("--output", type=local, required=True, metavar="HF_DIR")


def languages_add(args: argparse.Namespace) -> None:
    """Appends language-scripts to a full export, and shows how their rows begin."""
    from langsamp_jax.huggingface.add_languages import add_languages

    records = add_languages(
        args.model, args.languages, args.start, args.output, args.families, args.seed
    )
    show_records(
        records, {"table": "table", "row": "row:,", "code": "code", "start": "start"}, args.output
    )


def _add_compare(commands: Any) -> None:
    verb = add_verb(
        commands,
        "compare",
        compare,
        "runs side by side: variants over seeds, on what they were evaluated on",
        "vanilla_0 vanilla_1 langsamp_0 langsamp_1 --output compared.json",
    )
    verb.add_argument(
        "runs", nargs="+", type=location, metavar="RUN", help="the first is compared with"
    )
    verb.add_argument("--output", type=local, metavar="FILE.json")
    verb.add_argument(
        "--measures", default="", metavar="TEXT", help="show those whose name holds this"
    )


def compare(args: argparse.Namespace) -> None:
    """Shows the measures of runs side by side."""
    from langsamp_jax.cli.evaluation import measures_of
    from langsamp_jax.io.files import require_file, write_text
    from langsamp_jax.io.progress import table
    from langsamp_jax.report.compare import compare

    if args.output:
        require_file(args.output)
    comparison = compare(args.runs, measures_of)
    for result, data in comparison["data"].items():
        if len(data) > 1:
            print(
                f"{result}: the runs were evaluated on different data ({'; '.join(data)}): no "
                "difference is given between those"
            )
    headers = {"measure": "measure", "variant": "variant", "seeds": "seeds:d", "mean": "mean:.4f"}
    headers |= {"std": "std:.4f", "difference": "difference:+.4f"}
    records = [record for record in comparison["measures"] if args.measures in record["measure"]]
    if args.measures and not records:
        measured = sorted({record["measure"] for record in comparison["measures"]})
        print(f"--measures {args.measures}: no name holds this: {', '.join(measured)}")
    print(table(records, {**headers, "low": "from:+.4f", "high": "to:+.4f"}))
    if args.output:
        write_text(args.output, json.dumps(comparison, indent=1) + "\n")
        print(args.output)


def _add_report(commands: Any) -> None:
    verb = add_verb(
        commands,
        "report",
        report,
        "an HTML page of a run and its evaluations, and its figures for a paper",
        "--run run",
    )
    verb.add_argument("--run", type=location, required=True, metavar="RUN")


def report(args: argparse.Namespace) -> None:
    """Writes the page of a run."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a look takes no device away from a training
    from langsamp_jax.report.page import write_report

    print(write_report(args.run))
