"""Provenance: what a store was made of, for ``prepare`` to recognise it or to add to it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import write_text

_FILE = "origin.json"
LINES = "lines"  # the folder of the sorted hashes of the lines of each language-script


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The settings and the text of a store; two stores of equal provenance are equal.

    Attributes:
      settings: what decides the rows, beside the text.
      sources: digests of the texts of each language-script, in the order in which they came.
      report: what cleaning counted of each; no part of the comparison, nor is
      held_out: how much of the held-out text was in the text that came last (``HeldOut.matches``).
    """

    settings: dict[str, Any]
    sources: dict[str, list[str]]
    report: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict, compare=False)
    held_out: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def save(self, store: Path) -> None:
        """Writes ``origin.json`` into the folder of a store."""
        fields = dataclasses.asdict(self)
        if not self.held_out:
            del fields["held_out"]  # as earlier versions wrote it
        write_text(store / _FILE, json.dumps(fields, indent=1) + "\n")

    @staticmethod
    def load(store: Path) -> "Provenance":
        """Reads ``origin.json``; raises UserError where it is missing or damaged."""
        try:
            return Provenance(**json.loads((store / _FILE).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            raise UserError(
                f"{store / _FILE} is missing or damaged; prepare the store again"
            ) from None


def hashes_file(store: Path, name: str) -> Path:
    """Returns where a store keeps the hashes of the lines of a language-script."""
    return store / LINES / f"{name}.u64"
