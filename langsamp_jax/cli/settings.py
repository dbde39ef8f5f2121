"""The verb ``settings``: every gin name with its type, its default and what it means."""

import argparse
import dataclasses
import difflib
import itertools
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langsamp_jax.cli.parser import add_json, add_verb
from langsamp_jax.errors import UserError

if TYPE_CHECKING:
    from langsamp_jax.config import Setting

_WIDTHS = {"name": 40, "type": 26, "default": 14, "meaning": 60}  # characters


def add(commands: Any) -> None:
    """Adds the verb to the subparsers ``commands``."""
    verb = add_verb(
        commands,
        "settings",
        settings,
        "what can be set with --gin.NAME=VALUE or in a gin file: types, defaults, meanings",
        "train",
    )
    verb.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a group (train), a name (train.num_steps) or a part of names (default: all)",
    )
    add_json(verb)


def settings(args: argparse.Namespace) -> None:
    """Shows the settings that ``args.name`` stands for."""
    from langsamp_jax.config import all_settings
    from langsamp_jax.io.progress import table

    import_configs()
    chosen = select(all_settings(), args.name)
    if args.json:
        print(json.dumps([dataclasses.asdict(setting) for setting in chosen], indent=1))
        return
    lines = [line for setting in chosen for line in _wrapped(setting)]
    print(table(lines, {column: column for column in _WIDTHS}))


def select(settings: Sequence["Setting"], name: str | None) -> list["Setting"]:
    """Returns the settings of the group ``name``, else the one of that name, else those it is in.

    Raises:
      UserError: there are none; close names are given.
    """
    if name is None:
        return list(settings)
    for matches in (
        [setting for setting in settings if setting.name.split(".")[0] == name],
        [setting for setting in settings if setting.name == name],
        [setting for setting in settings if name in setting.name],
    ):
        if matches:
            return matches
    full_names = {word: setting.name for setting in settings for word in setting.name.split(".")}
    groups = dict.fromkeys(setting.name.split(".")[0] for setting in settings)
    names = {**full_names, **{group: group for group in groups}}
    names |= {setting.name: setting.name for setting in settings}
    close = dict.fromkeys(names[word] for word in difflib.get_close_matches(name, names))
    meant = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(groups)}"
    raise UserError(f"there is no setting {name!r}; {meant}")


def import_configs() -> None:
    """Imports every module that defines a config, which makes its gin names known."""
    import langsamp_jax.evaluation.config
    import langsamp_jax.training.config  # noqa: F401


def _wrapped(setting: "Setting") -> list[dict[str, str]]:
    """Returns the rows of a table that hold one setting, each cell within its width."""
    cells = {**dataclasses.asdict(setting), "default": repr(setting.default)}
    columns = [textwrap.wrap(cells[column], width) for column, width in _WIDTHS.items()]
    rows = itertools.zip_longest(*columns, fillvalue="")
    return [dict(zip(_WIDTHS, row, strict=True)) for row in rows]
