"""Writes rows for `langsamp inspect`: as text with the hidden tokens marked, and as JSON.

The marks are the same on a terminal, where they have colours too, and in a file.
"""

import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from langsamp_jax.cli.inspect_rows import Row
from langsamp_jax.text.tokenizer import Tokenizer

KINDS = ("mask", "random", "kept")

_COLOURS = {"quiet": "2", "mask": "1;32", "random": "1;31", "kept": "1;34", "unknown": "1;35"}
_JOINERS = "\u200c\u200d"  # the invisible characters that Persian and Indic spelling needs
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats, surrogates, separators of lines

Paint = Callable[[str, str], str]  # (text, name of a colour) -> text


def legend(tokenizer: Tokenizer, colours: bool) -> str:
    """Returns what the marks mean, in one line."""
    paint = _painter(colours)
    bos, eos, unknown, mask = (
        tokenizer.pieces[getattr(tokenizer.vocabulary, f"{name}_id")]
        for name in ("bos", "eos", "unk", "mask")
    )
    return (
        f"hidden, the model predicts what stood there: {paint('[was]', 'mask')} it reads {mask}, "
        f"{paint('[was>piece]', 'random')} a random piece, {paint('[was=]', 'kept')} what was; "
        f"{paint(f'{bos} {eos}', 'quiet')} a line begins, ends; {paint('...', 'quiet')} it goes on "
        f"in another row; {paint(unknown, 'unknown')} no piece"
    )


def show(row: Row, tokenizer: Tokenizer, ids: bool, colours: bool) -> str:
    """Returns a row for people: what it is, its lines, and under each its ids if asked for."""
    paint = _painter(colours)
    shown = [_heading(row, tokenizer)]
    for line in _lines(row, tokenizer):
        shown.append(_marked(row, line, tokenizer, paint, _text(tokenizer)))
        if ids:
            shown.append(_marked(row, line, tokenizer, paint, _number))
    return "\n".join(shown)


def record(row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a row for programs: the same, exactly, as JSON values."""
    pieces, surfaces = tokenizer.pieces, tokenizer.surfaces
    special = tokenizer.vocabulary.bos_id, tokenizer.vocabulary.eos_id
    kinds = _kinds(row, tokenizer)
    return {
        "language": row.language,
        "row": row.row,
        "place": row.place,
        "padding": row.padding,
        "unknown": _unknown(row, tokenizer),
        "lines": [
            "".join(surfaces[i] for i in row.tokens[line] if i not in special).strip(" ")
            for line in _lines(row, tokenizer)
        ],
        "tokens": row.tokens.tolist(),
        "inputs": row.inputs.tolist(),
        "hidden": [
            {
                "position": position,
                "kind": kinds[position],
                "was": pieces[row.tokens[position]],
                "reads": pieces[row.inputs[position]],
            }
            for position in np.flatnonzero(row.hidden).tolist()
        ],
    }


def _kinds(row: Row, tokenizer: Tokenizer) -> list[str | None]:
    """Returns how each position is hidden, or None; a random piece equal to the old one is kept."""
    masked = row.inputs == tokenizer.vocabulary.mask_id
    kinds = np.where(masked, "mask", np.where(row.inputs == row.tokens, "kept", "random"))
    return [str(kind) if hidden else None for kind, hidden in zip(kinds, row.hidden, strict=True)]


def _unknown(row: Row, tokenizer: Tokenizer) -> int:
    return int(np.count_nonzero(row.tokens == tokenizer.vocabulary.unk_id))


def _lines(row: Row, tokenizer: Tokenizer) -> Iterator[slice]:
    """Yields the positions of each line of text that has tokens in the row."""
    bos, eos = tokenizer.vocabulary.bos_id, tokenizer.vocabulary.eos_id
    begins = row.tokens == bos
    begins[1:] |= row.tokens[:-1] == eos
    starts = [0, *(np.flatnonzero(begins[1:]) + 1).tolist(), len(row.tokens)]
    return map(slice, starts, starts[1:])


def _heading(row: Row, tokenizer: Tokenizer) -> str:
    where = f"{row.language}:{row.row}" + ("" if row.place is None else f"  batch[{row.place}]")
    lines = sum(1 for _ in _lines(row, tokenizer))
    facts = f"{len(row.tokens)} tokens, {row.padding} padding, {_unknown(row, tokenizer)} unknown"
    facts += f"; {lines} line{'s' if lines != 1 else ''}"
    if row.hidden.any():
        kinds = _kinds(row, tokenizer)
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
        facts += f"; {np.count_nonzero(row.hidden)} hidden: {counts}"
    return f"{where}  {facts}"


Spelling = Callable[[int, bool], str]  # (id, whether another stood there) -> text


def _text(tokenizer: Tokenizer) -> Spelling:
    """Returns how ids become text: what stood there; a random piece as the vocabulary has it."""

    def spell(token: int, intruder: bool) -> str:
        return _visible(tokenizer.pieces[token] if intruder else tokenizer.surfaces[token])

    return spell


def _number(token: int, intruder: bool) -> str:
    return str(token) if intruder else f" {token}"


def _marked(row: Row, line: slice, tokenizer: Tokenizer, paint: Paint, spell: Spelling) -> str:
    """Returns one line of a row: its beginning, its text with the hidden tokens marked, its end."""
    vocabulary, kinds = tokenizer.vocabulary, _kinds(row, tokenizer)
    positions = list(range(line.start, line.stop))
    first, last = "...", "..."
    if row.tokens[positions[0]] == vocabulary.bos_id:
        first = spell(vocabulary.bos_id, False).strip()
        positions = positions[1:]
    if positions and row.tokens[positions[-1]] == vocabulary.eos_id:
        last = spell(vocabulary.eos_id, False).strip()
        positions = positions[:-1]

    parts, after_mark = [], False
    for position in positions:
        was, kind = spell(row.tokens[position], False), kinds[position]
        if kind is not None:
            mark = _apart(was.strip(" ") or "▁")
            if kind == "random":
                mark += ">" + _apart(spell(row.inputs[position], True))
            mark += "=" if kind == "kept" else ""
            parts.append(" " * was.startswith(" ") + paint(f"[{mark}]", kind))
        elif row.tokens[position] == vocabulary.unk_id:
            parts.append(paint(was, "unknown"))
        else:
            parts.append(_apart(was) if after_mark else was)
        after_mark = kind is not None
    text = "".join(parts).strip(" ")
    return f"  {paint(first, 'quiet')} {text} {paint(last, 'quiet')}"


def _apart(text: str) -> str:
    """Gives a combining mark a circle to stand on, so that it does not change the bracket."""
    return "◌" + text if unicodedata.category(text[:1] or " ").startswith("M") else text


def _visible(text: str) -> str:
    """Escapes what a terminal would obey instead of showing it."""
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(char):04x}"
        if unicodedata.category(char) in _INVISIBLE and char not in _JOINERS
        else char
        for char in text
    )


def _painter(colours: bool) -> Paint:
    if not colours:
        return lambda text, name: text
    return lambda text, name: f"\x1b[{_COLOURS[name]}m{text}\x1b[0m"
