"""The tasks of ``langsamp evaluate`` and their arguments."""

import argparse
from collections.abc import Callable
from typing import Any

from langsamp_jax.evaluate import verbs
from langsamp_jax.storage import local, location

Verb = Callable[..., argparse.ArgumentParser]


def add_tasks(tasks: Any, verb: Verb, takes_gin: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds every task to the subparsers ``tasks``, with the functions of ``arguments.py``."""

    def task(
        name: str, call: Callable[[argparse.Namespace], None], summary: str, data: str, example: str
    ) -> argparse.ArgumentParser:
        parser = verb(tasks, name, call, summary, f"--model run --data {example}")
        model = "RUN" if name == "mlm" else "RUN_OR_HF_DIR"
        parser.add_argument("--model", type=location, required=True, metavar=model)
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

    task("mlm", verbs.mlm, "masked-LM loss per language", "STORE", "store")
    for name, what, example in (
        ("retrieval-tatoeba", "pairs of files in the layout of Tatoeba", "tatoeba"),
        ("retrieval-bible", "line-aligned text, as Bibles", "corpus --pivot eng_Latn"),
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
        parser = task(name, verbs.transfer, summary, "DIR", f"{name} --gin.finetune.num_seeds=1")
        parser.add_argument(
            "--source", default="eng_Latn", help="language-script to train on (default eng_Latn)"
        )
        takes_gin(parser)
    parser = task(
        "pseudo-perplexity",
        verbs.pseudo_perplexity,
        "how well each token of a text is predicted from all others",
        "CORPUS",
        "corpus",
    )
    parser.add_argument(
        "--sentences", type=int, default=100, metavar="N", help="of each language (default 100)"
    )
    parser = task(
        "neutrality",
        verbs.neutrality,
        "how alike translations are, beyond how alike all sentences are",
        "CORPUS",
        "corpus",
    )
    parser.add_argument(
        "--pivot", default="eng_Latn", help="whose lines the others translate (default eng_Latn)"
    )
    parser.add_argument(
        "--sentences", type=int, metavar="N", help="the first N lines (default: all)"
    )
