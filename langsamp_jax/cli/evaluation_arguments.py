"""The tasks of ``langsamp evaluate`` and their arguments."""

import argparse
from collections.abc import Callable
from typing import Any

from langsamp_jax.cli import evaluation_verbs as verbs
from langsamp_jax.io.storage import local, location

Verb = Callable[..., argparse.ArgumentParser]


def add_tasks(tasks: Any, verb: Verb, takes_gin: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds every task to the subparsers ``tasks``, with the functions of ``arguments.py``."""

    def task(
        name: str,
        call: Callable[[argparse.Namespace], None],
        summary: str,
        data: str | None,
        example: str,
    ) -> argparse.ArgumentParser:
        parser = verb(tasks, name, call, summary, f"--model run {example}")
        model = "RUN" if name == "mlm" else "RUN_OR_HF_DIR"
        parser.add_argument("--model", type=location, required=True, metavar=model)
        if data is not None:
            kind = location if data == "STORE" else local
            parser.add_argument("--data", type=kind, required=True, metavar=data)
        parser.add_argument(
            "--output",
            type=location,
            metavar="FILE.json",
            help=f"default, for a run: RUN/evaluation/{name}.json",
        )
        parser.add_argument(
            "--step", type=int, metavar="N", help="checkpoint of a run (default: the best)"
        )
        parser.set_defaults(task=name)
        return parser

    task("mlm", verbs.mlm, "masked-LM loss per language", "STORE", "--data store")
    for name, what, example in (
        ("retrieval-tatoeba", "pairs of files in the layout of Tatoeba", "--data tatoeba"),
        ("retrieval-bible", "line-aligned text, as Bibles", "--data corpus --pivot eng_Latn"),
    ):
        parser = task(name, verbs.retrieval, f"sentence retrieval on {what}", "DIR", example)
        parser.add_argument(
            "--pivot", default="eng_Latn", help="language-script of the queries (default eng_Latn)"
        )
    for name, what in (
        ("taxi1500", "6 topics of Bible verses"),
        ("sib200", "7 topics of FLORES sentences"),
        ("ner", "named entities, WikiANN or UNER"),
        ("pos", "parts of speech, Universal Dependencies"),
    ):
        summary = f"fine-tune on one language, test on all: {what}"
        parser = task(
            name, verbs.transfer, summary, "DIR", f"--data {name} --gin.finetune.num_seeds=1"
        )
        parser.add_argument(
            "--source", default="eng_Latn", help="language-script to train on (default eng_Latn)"
        )
        takes_gin(parser)
    parser = task(
        "pseudo-perplexity",
        verbs.pseudo_perplexity,
        "how well each token of a text is predicted from all others",
        "CORPUS",
        "--data corpus",
    )
    parser.add_argument(
        "--sentences", type=_count, default=100, metavar="N", help="of each language (default 100)"
    )
    parser = task(
        "neutrality",
        verbs.neutrality,
        "how alike translations are, beyond how alike all sentences are",
        "CORPUS",
        "--data corpus",
    )
    parser.add_argument(
        "--pivot", default="eng_Latn", help="whose lines the others translate (default eng_Latn)"
    )
    parser.add_argument(
        "--sentences", type=_count, metavar="N", help="the first N lines (default: all)"
    )
    parser = task(
        "geometry",
        verbs.geometry,
        "the two tables: map, neighbours, agreement with distances between languages",
        None,
        "--references uriel.npz --families families.tsv",
    )
    _references(parser)
    parser.add_argument(
        "--families",
        type=local,
        metavar="FILE",
        help="a line a language, its code and its family; or the world.json of a synthetic corpus",
    )
    parser = task(
        "donors",
        verbs.donors,
        "the language to fine-tune on, chosen by language vectors and in other ways",
        "DIR",
        "--data sib200 --references uriel.npz --gin.finetune.num_seeds=1",
    )
    parser.add_argument(
        "--on",
        choices=("sib200", "taxi1500", "ner", "pos"),
        default="sib200",
        help="task (default sib200)",
    )
    parser.add_argument(
        "--pivot", default="eng_Latn", help="the usual donor, to compare with (default eng_Latn)"
    )
    parser.add_argument(
        "--donors",
        nargs="+",
        metavar="NAME",
        help="to choose from (default: all that the model was trained on)",
    )
    _references(parser)
    takes_gin(parser)


def _references(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--references",
        type=local,
        nargs="+",
        default=[],
        metavar="FILE",
        help="distances between languages: URIEL vectors as .npz, world.json of a synthetic corpus",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)
