"""Held-out text: evaluation sets whose texts are left out of a corpus, and what they matched."""

import csv
import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.corpus.cleaning import line_hashes, match_keys
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import files_below
from langsamp_jax.io.text_lines import read_text, text_lines

_JSON = (".json", ".jsonl", ".ndjson")
_NAMED = 5  # of the files that matched nothing
_LONGEST_FIELD = 1 << 24  # characters; csv's own limit is 131,072


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The texts of files, as hashes of what makes them the same (``match_keys``).

    Attributes:
      files: by path uint64 [texts], sorted, each once.
    """

    files: Mapping[str, np.ndarray]

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """Returns uint64 [texts], sorted: those of all files, each once."""
        return np.unique(np.concatenate([np.zeros(0, np.uint64), *self.files.values()]))

    def matches(self, matched: Iterable[int], lines: int) -> dict[str, Any]:
        """Returns what is recorded of a corpus: how much of the held-out text was in it.

        Args:
          matched: places in ``hashes``, repeated or not.
          lines: how many lines were left out.
        """
        found = np.zeros(len(self.hashes), bool)
        found[list(matched)] = True
        files = {
            path: {
                "texts": len(texts),
                "matched": int(found[np.searchsorted(self.hashes, texts)].sum()),
            }
            for path, texts in self.files.items()
        }
        totals = {"texts": len(found), "matched": int(found.sum()), "lines": lines}
        return {**totals, "files": files}


def read_held_out(paths: Sequence[Path]) -> HeldOut:
    """Reads what ``TextCleaner`` must leave out.

    Of every file, also in subfolders, these are texts: each line, and each field of a line with
    tabs or of a ``.csv`` file; of ``.json``, ``.jsonl`` and ``.ndjson`` files each string that is
    a value, and each line of it; but of files with a token and its labels a line, an empty line
    between sentences and perhaps comments with ``#``, each sentence.

    Raises:
      UserError: a path is missing or an empty folder, or a file is not UTF-8 text or not JSON.
    """
    files = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"--held_out {path} not found")
        within = list(files_below(path)) if path.is_dir() else [path]
        if not within:
            raise UserError(f"--held_out {path} is an empty folder")
        for file in within:
            try:
                keys = match_keys(_texts(file))
            except UserError as error:
                raise UserError(f"--held_out {error}") from None
            files[str(file)] = np.unique(line_hashes([key for key in keys if key]))
    return HeldOut(files)


def matches_shown(matches: Mapping[str, Any]) -> list[str]:
    """Returns what a person should know of ``HeldOut.matches``, one line each."""
    files = matches["files"]
    unmatched = [path for path, counts in files.items() if not counts["matched"]]
    lines = [
        f"held out: {matches['matched']:,} of {matches['texts']:,} texts, of "
        f"{len(files) - len(unmatched):,} of {len(files):,} files, matched {matches['lines']:,} "
        "lines, which were left out"
    ]
    if unmatched:
        more = f" and {len(unmatched) - _NAMED:,} more" if len(unmatched) > _NAMED else ""
        lines.append(
            f"held out: no line matches {', '.join(unmatched[:_NAMED])}{more}: perhaps these are "
            "in other languages, or in a form that is not read"
        )
    return lines


def _texts(file: Path) -> list[str]:
    """Returns the texts of one file, see ``read_held_out``."""
    text = read_text(file)
    if file.suffix.lower() in _JSON:
        return _json_texts(text, file)
    lines = text_lines(text)
    groups = itertools.groupby(lines, key=lambda line: bool(line.strip()))
    sentences = [[line for line in group if line[0] != "#"] for filled, group in groups if filled]
    if len(sentences) > 1 and all("\t" in line for sentence in sentences for line in sentence):
        return [" ".join(map(_word, sentence)) for sentence in sentences]
    texts = [field for line in lines for field in {line, *line.split("\t")}]
    if file.suffix.lower() == ".csv":
        texts += _csv_texts(text, file)
    return texts


def _json_texts(text: str, file: Path) -> list[str]:
    """Returns the strings of a JSON document or, if it is none, of a document a line."""
    try:
        documents = [json.loads(text)]
    except ValueError:
        documents = []
        for number, line in enumerate(text_lines(text), 1):
            try:
                documents += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise UserError(f"{file}, line {number}: not JSON ({error})") from None
    return [part for value in _strings(documents) for part in {value, *value.split("\n")}]


def _strings(value: Any) -> Iterator[str]:
    """Yields the strings among the values of JSON, however deep; not the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _csv_texts(text: str, file: Path) -> list[str]:
    """Returns the fields of a table with commas, or whatever its first line has more of."""
    first = text.partition("\n")[0]
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max(",;", key=first.count)))
    except csv.Error as error:
        raise UserError(f"{file}: no table of comma-separated values ({error})") from None
    return [part for row in rows for field in row for part in {field, *field.split("\n")}]


def _word(line: str) -> str:
    """Returns the token of a line, "" for a line of CoNLL-U that is no token of its own."""
    columns = line.split("\t")
    if len(columns) < 10:
        return columns[0]
    return columns[1] if columns[0].isdigit() else ""
