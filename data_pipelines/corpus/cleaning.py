"""Cleaning: lines are mended or left out, and this is counted language by language."""

import collections
import dataclasses
import functools
import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from fontTools.unicodedata import Scripts

from data_pipelines.corpus.sources import LONGEST_LINE, Block, TextRange, line_number, read_blocks
from langsamp_jax.errors import UserError
from langsamp_jax.io.text_lines import INVISIBLE, VISIBLE, VISIBLE_OR_PRIVATE
from langsamp_jax.languages.inventory import is_private_script

WRONG_SCRIPT_SHARE = 0.1  # of the lines, above which a language-script is warned of


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """Says what is done to lines, beside removing control characters.

    Attributes:
      normalization: Unicode's canonical composition, or none.
      duplicates: drop or keep a line that repeats an earlier one of the same language-script.
    """

    normalization: Literal["NFC", "none"] = "NFC"
    duplicates: Literal["drop", "keep"] = "drop"


# The counts of a language-script, and their titles in a table.
CLEANING_COLUMNS = {
    "lines": "lines read:,",
    "damaged": "not UTF-8:,",
    "overlong": "too long:,",
    "invisible": "invisible:,",
    "control": "control characters:,",
    "normalized": "not NFC:,",
    "wrong_script": "wrong script:,",
    "held_out": "held out:,",
    "duplicates": "duplicates:,",
}

# Control characters (the line feed apart), the byte order mark, and code points that no character
# has. Zero-width joiners stay: several scripts need them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_SPACE = re.compile("[\x0b-\x0d\x1c-\x1f\x85]")

# Beside the numbers of the scripts.
_CONTROL_CLASS, _LINE_END_CLASS, _INVISIBLE_CLASS = 255, 254, 253

# Script codes of text that is written in several of Unicode's scripts, or in a variant of one.
_SCRIPTS = {
    "Jpan": {"Hira", "Kana", "Hani"},
    "Hrkt": {"Hira", "Kana"},
    "Kore": {"Hang", "Hani"},
    "Hans": {"Hani"},
    "Hant": {"Hani"},
    "Hanb": {"Hani", "Bopo"},
    "Aran": {"Arab"},
    "Latf": {"Latn"},
    "Latg": {"Latn"},
    "Cyrs": {"Cyrl"},
    "Geok": {"Geor"},
}


class TextCleaner:
    """Cleans the text of one language-script and counts what it meets.

    Attributes:
      counts: by the keys of ``CLEANING_COLUMNS``; duplicates are counted elsewhere.
      matched: places in ``held_out`` of what was found there, sorted, of one block after the other.
      found_scripts: the lines whose letters are mostly of another script, by that script.
    """

    def __init__(self, name: str, cleaning: CleaningConfig, held_out: np.ndarray | None = None):
        self._normalization = cleaning.normalization
        self._held_out = held_out
        self._script = name.partition("_")[2]
        private = is_private_script(self._script)
        self._has_text = (VISIBLE_OR_PRIVATE if private else VISIBLE).search
        self.matched: list[int] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.found_scripts: collections.Counter[str] = collections.Counter()

    def clean(self, block: Block, skip_damaged: bool = False) -> list[str]:
        """Returns the lines of a block that are not left out, each stripped, none empty.

        Raises:
          DamagedText: bytes that are not UTF-8, unless ``skip_damaged``.
        """
        self.counts["overlong"] += block.overlong
        text = self._decode(block, skip_damaged)
        if block.start == 0:
            text = text.removeprefix("\ufeff")
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        if not text.endswith("\n"):
            text += "\n"
        classes = _classes(text)
        if np.any(classes == _CONTROL_CLASS):
            self.counts["control"] += sum(1 for x in text.split("\n") if _CONTROL.search(x.strip()))
            text = _CONTROL.sub("", _SPACE.sub(" ", text))
            classes = _classes(text)
        self._count_scripts(text, classes)
        if self._normalization == "NFC":
            normalized = unicodedata.normalize("NFC", text)
            if normalized != text:
                both = zip(text.split("\n"), normalized.split("\n"), strict=True)
                self.counts["normalized"] += sum(1 for old, new in both if old != new)
                text = normalized
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        if np.any(classes == _INVISIBLE_CLASS):
            filled, lines = lines, list(filter(self._has_text, lines))
            self.counts["invisible"] += len(filled) - len(lines)
        self.counts["lines"] += len(lines)
        if max(map(len, lines), default=0) > LONGEST_LINE // 4:  # characters have up to 4 bytes
            short = [line for line in lines if len(line.encode()) <= LONGEST_LINE]
            self.counts["overlong"] += len(lines) - len(short)
            lines = short
        if self._held_out is not None and len(self._held_out) and lines:
            lines = self._without_held_out(lines)
        return lines

    def _without_held_out(self, lines: list[str]) -> list[str]:
        """Returns the lines that are not held out; np.isin would sort the held-out texts anew."""
        hashes, held_out = line_hashes(match_keys(lines)), self._held_out
        places = np.searchsorted(held_out, hashes).clip(max=len(held_out) - 1)
        matches = held_out[places] == hashes
        self.counts["held_out"] += int(matches.sum())
        self.matched += np.unique(places[matches]).tolist()
        return [line for line, drop in zip(lines, matches, strict=True) if not drop]

    def _decode(self, block: Block, skip_damaged: bool) -> str:
        try:
            return block.text.decode("utf-8")
        except UnicodeDecodeError:
            pass
        lines, position = [], block.start
        for raw in block.text.split(b"\n"):
            try:
                lines.append(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                if not skip_damaged:
                    raise DamagedText(position, error) from None
                self.counts["damaged"] += 1
            position += len(raw) + 1
        return "\n".join(lines)

    def _count_scripts(self, text: str, classes: np.ndarray) -> None:
        """Counts the lines most of whose letters are not of the script that the name says."""
        scripts, _ = _class_table()
        own_script = {self._script} & {*scripts[1:]}  # empty if Unicode does not know the code
        expected = [scripts.index(code) for code in _SCRIPTS.get(self._script, own_script)]
        if not expected:
            return
        ends = np.flatnonzero(classes == _LINE_END_CLASS)
        starts = np.concatenate([[0], ends[:-1] + 1])
        of_script = (classes > 0) & (classes < len(scripts))
        right = np.isin(np.arange(256), expected)[classes]
        right = np.add.reduceat(right, starts, dtype=np.int32)
        letters = np.add.reduceat(of_script, starts, dtype=np.int32)
        wrong = np.flatnonzero(2 * right < letters)
        self.counts["wrong_script"] += len(wrong)
        for line in wrong:
            span = slice(starts[line], ends[line])
            letter_scripts = classes[span][of_script[span]]
            self.found_scripts[scripts[np.bincount(letter_scripts).argmax()]] += 1


def clean_lines(
    cleaner: TextCleaner, text: TextRange, skip_damaged: bool = False
) -> Iterator[list[str]]:
    """Yields the clean lines of a range of text, some at a time.

    Raises:
      UserError: the file is damaged; it, and the line where it is one, are named.
    """
    try:
        for block in read_blocks(text):
            yield cleaner.clean(block, skip_damaged)
    except DamagedText as error:
        number = line_number(text.file, error.position)
        raise UserError(f"{text.file}, line {number}: not UTF-8 ({error.reason})") from None


class DamagedText(Exception):
    """Tells that bytes are not UTF-8.

    Attributes:
      position: of the first byte of the line in the text of its file.
      reason: what is wrong with it.
    """

    def __init__(self, position: int, error: UnicodeDecodeError):
        super().__init__(position, str(error))
        self.position = position
        self.reason = f"{error.reason} at byte {error.start}"


def warnings(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns what a person should look at, one line each.

    Args:
      report: ``Provenance.report``: ``hygiene``, ``scripts`` and ``left_out`` by language-script.
    """
    messages = []
    for name, facts in report.items():
        messages += [f"{name}: left out: {reason}" for reason in facts["left_out"]]
        lines, wrong = facts["hygiene"].get("lines", 0), facts["hygiene"].get("wrong_script", 0)
        if wrong > WRONG_SCRIPT_SHARE * lines:
            shares = sorted(facts["scripts"].items(), key=lambda item: -item[1])[:3]
            named = ", ".join(f"{script} {count / lines:.1%}" for script, count in shares)
            share = f"{wrong / lines:.1%} of the lines are in another script"
            messages.append(f"{name}: {share} ({named})")
    return messages


def line_hashes(lines: Sequence[str]) -> np.ndarray:
    """Returns uint64 [lines]: a hash of the text of each line alone."""
    digests = [hashlib.blake2b(line.encode("utf-8"), digest_size=8).digest() for line in lines]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def is_validation(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Returns bool [lines]: True for validation; equal lines agree, in all languages."""
    return hashes / 2.0**64 < fraction


def match_keys(lines: Sequence[str]) -> list[str]:
    """Reduces texts to what makes them the same: letters, marks and digits, without case.

    Spaces, punctuation and symbols do not count, nor does how a character is encoded (NFKC).
    """
    text = unicodedata.normalize("NFKC", "\n".join(x.replace("\n", " ") for x in lines))
    text = unicodedata.normalize("NFKC", text.casefold())  # each may undo a little of the other
    return text.translate(_ignored()).split("\n") if lines else []


@functools.cache
def _ignored() -> dict[int, None]:
    """Returns every code point that is no letter, mark or digit, the line feed apart."""
    ignored = (c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] in "PSZC")
    return {code: None for code in ignored if code != ord("\n")}


def _classes(text: str) -> np.ndarray:
    """Returns uint8 [characters]: the class of each, see ``_class_table``."""
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return _class_table()[1][codes]


@functools.cache
def _class_table() -> tuple[list[str], np.ndarray]:
    """Returns Unicode's script codes, and the class of every code point, uint8 [code points]: the
    number of its script (0: none, or any), ``_CONTROL_CLASS``, ``_LINE_END_CLASS``, or
    ``_INVISIBLE_CLASS``."""
    scripts = ["Zyyy", *sorted(set(Scripts.VALUES) - {"Zyyy", "Zinh", "Zzzz"})]
    index = {code: number for number, code in enumerate(scripts)}
    values = np.array([index.get(code, 0) for code in Scripts.VALUES], np.uint8)
    table = np.repeat(values, np.diff([*Scripts.RANGES, sys.maxunicode + 1]))
    characters = np.arange(sys.maxunicode + 1, dtype="<u4").tobytes()
    for run in INVISIBLE.finditer(characters.decode("utf-32-le", "surrogatepass")):
        table[slice(*run.span())] = _INVISIBLE_CLASS
    table[[ord(c) for c in map(chr, range(0x10000)) if _CONTROL.match(c)]] = _CONTROL_CLASS
    table[ord("\n")] = _LINE_END_CLASS
    return scripts, table
