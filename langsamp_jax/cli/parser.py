"""What the verbs of the ``langsamp`` command share: how one is added, common arguments, tables.

A family of verbs is a module with ``add(commands)``; libraries are imported in the function of
the verb, so that ``--help`` answers at once.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import local, location

GIN_HINT = "; any setting can be given as --gin.NAME=VALUE"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_verb(
    commands: Any, name: str, call: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """Adds a verb, whose arguments ``call`` is run with, to the subparsers ``commands``."""
    verb = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
    )
    verb.epilog = f"example: {verb.prog} {example}"
    verb.set_defaults(call=call)
    return verb


def add_actions(commands: Any, name: str, summary: str, kind: str = "action") -> Any:
    """Adds a verb of several actions, or whatever ``kind`` they are; returns their subparsers."""
    verb = commands.add_parser(name, help=summary, allow_abbrev=False)
    return verb.add_subparsers(title=f"{kind}s", metavar=kind.upper(), required=True)


def add_store(verb: argparse.ArgumentParser) -> None:
    """Adds ``--data STORE``."""
    verb.add_argument("--data", type=location, required=True, metavar="STORE")


def add_gin(verb: argparse.ArgumentParser) -> None:
    """Adds ``--gin_file``; a verb that has it takes ``--gin.NAME=VALUE`` too."""
    verb.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="repeatable")
    verb.epilog += GIN_HINT


def add_json(verb: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    verb.add_argument("--json", action="store_true", help="for programs")


def add_edits(verb: argparse.ArgumentParser) -> None:
    """Adds ``--edit``, what is changed in a model, and ``--reference``, a text for means."""
    verb.add_argument(
        "--edit",
        nargs="+",
        default=[],
        metavar="EDIT",
        help="change the trained model: attention@3=mean, ffn@0-2=zero, head@3.1, norm@all, "
        "block@5, block@5=repeat, block@5=swap, language=zero, script=mean, neurons=FILE.npz; "
        "layers are counted from 0",
    )
    verb.add_argument(
        "--reference",
        type=local,
        metavar="CORPUS",
        help="for =mean: a folder of files such as deu_Latn.txt, over which the mean is",
    )


def refuse(args: argparse.Namespace, option: str, *names: str) -> None:
    """Raises UserError where arguments are given that do not go with ``option``."""
    if given := [f"--{name}" for name in names if getattr(args, name) is not None]:
        raise UserError(f"{', '.join(given)} cannot be given with {option}")


def show_records(
    records: Sequence[Mapping[str, Any]], headers: Mapping[str, str], where: object
) -> None:
    """Prints a table, and under it where the whole of it is."""
    from langsamp_jax.io.progress import table

    print(table(records, headers))
    print(where)
