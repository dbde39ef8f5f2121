"""What the model sees: rows of a store as text, the batch of a step, and what is hidden in it.

    langsamp inspect --data STORE --step 3 --gin_file small_text.gin

The marks are the same on a terminal, where they have colours too, and in a file.
"""

import bisect
import collections
import dataclasses
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from langsamp_jax.data.sampling import Sampler
from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import suggest
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masking import mask_rows
from langsamp_jax.text.tokenizer import Tokenizer
from langsamp_jax.training.config import Configs

KINDS = ("mask", "random", "kept")

_COLOURS = {"quiet": "2", "mask": "1;32", "random": "1;31", "kept": "1;34", "unknown": "1;35"}
_JOINERS = "\u200c\u200d"  # the invisible characters that Persian and Indic spelling needs
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats, surrogates, separators of lines

Paint = Callable[[str, str], str]  # (text, name of a colour) -> text


@dataclasses.dataclass(frozen=True)
class Row:
    """One row, with what a training step has hidden in it, if it is of a step.

    ``hidden`` positions are those that the step predicts: its targets are ``tokens[hidden]``.
    """

    language: str  # the language-script
    row: int  # its number in the split
    place: int | None  # its position in the batch of the step
    tokens: np.ndarray  # int32 [valid], what stands in the store
    inputs: np.ndarray  # int32 [valid], what the model reads
    hidden: np.ndarray  # bool [valid]
    padding: int  # how many positions of the row hold nothing


def inspect_rows(
    store: Store, configs: Configs, language: str | None, step: int | None, split: str, count: int
) -> tuple[str, list[Row]]:
    """A title and at most ``count`` rows: those of a step, or else the first of a language-script.

    With neither a step nor a language-script they are those of step 1.

    Raises:
      UserError: the store has no such language-script or rows, the plan no such step.
    """
    if count < 1:
        raise UserError(f"--rows {count}: expected a whole number above 0")
    if language is not None:
        _require_language(store, language)
    if split != "train" and (language is None or step is not None):
        raise UserError(f"--split {split} needs --language and no --step: steps are of training")
    if language is not None and step is None:
        opened = store.split(split)
        total = opened.rows[opened.names.index(language)]
        title = f"the first of {total:,} {split} rows of {language}"
        return title, stored_rows(opened, language, count)
    step = 1 if step is None else step
    train, size = configs.train, configs.train.global_batch_size
    sampler = configs.mixture.sampler(store.manifest, train.seed, train.num_steps, size)
    rows = step_rows(store, configs, sampler, step, language, count)
    return describe_batch(store.manifest.names, sampler, step, size), rows


def stored_rows(split: Split, language: str, count: int) -> list[Row]:
    """The first ``count`` rows of a language-script, with nothing hidden."""
    index = split.names.index(language)
    if not split.rows[index]:
        raise UserError(f"{split.path} has no row of {language}")
    numbers = np.arange(min(count, split.rows[index]))
    read = zip(*split.read(np.full(len(numbers), index), numbers), strict=True)
    nothing = np.zeros(split.sequence_length, bool)
    return [
        _row(language, number, None, tokens, tokens, nothing, length)
        for number, (tokens, length) in enumerate(read)
    ]


def step_rows(
    store: Store, configs: Configs, sampler: Sampler, step: int, language: str | None, count: int
) -> list[Row]:
    """The first ``count`` rows of a training step's batch, hidden as that step hides them.

    Steps are counted as ``metrics.jsonl`` and messages count them: the first is 1.

    Args:
      language: only rows of this language-script; None: of all.

    Raises:
      UserError: the step is not planned, or has no row of ``language``; the next one that has is
        named.
    """
    planned, size = configs.train.num_steps, configs.train.global_batch_size
    if not 1 <= step <= planned:
        raise UserError(
            f"--step {step}: expected 1 to {planned}, the steps planned (train.num_steps)"
        )
    split = store.split("train")
    languages, rows = sampler.batch(step - 1, size)
    places = np.arange(size)
    if language is not None:
        index = split.names.index(language)
        places = np.flatnonzero(languages == index)
        if not len(places):
            later = _next_step(sampler, index, step, planned, size)
            raise UserError(f"step {step} has no row of {language}; {later}")
    places = places[:count]
    tokens, lengths = split.read(languages[places], rows[places])
    keys, _ = step_keys(configs.train.seed, step - 1, size)
    masked = mask_rows(
        keys[places],
        tokens,
        np.arange(split.sequence_length) < lengths[:, None],
        store.manifest.vocabulary,
        configs.objective,
    )
    hidden = np.zeros(tokens.shape, bool)
    np.put_along_axis(hidden, np.asarray(masked.positions), np.asarray(masked.weights), axis=1)
    inputs = np.asarray(masked.inputs)
    return [
        _row(split.names[languages[p]], rows[p], int(p), tokens[i], inputs[i], hidden[i], length)
        for i, (p, length) in enumerate(zip(places, lengths, strict=True))
    ]


def describe_batch(names: Sequence[str], sampler: Sampler, step: int, size: int) -> str:
    """``step 3: 64 rows of 23 language-scripts: deu_Latn 7, eng_Latn 6, ...``."""
    counts = collections.Counter(sampler.batch(step - 1, size)[0].tolist())
    most = [f"{names[index]} {count}" for index, count in counts.most_common(5)]
    most += ["..."] * (len(counts) > 5)
    return f"step {step}: {size} rows of {len(counts)} language-scripts: {', '.join(most)}"


def legend(tokenizer: Tokenizer, colours: bool) -> str:
    """What the marks mean, in one line."""
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
    """A row for people: what it is, then each of its lines, and under it the ids if asked for."""
    paint = _painter(colours)
    shown = [_heading(row, tokenizer)]
    for line in _lines(row, tokenizer):
        shown.append(_marked(row, line, tokenizer, paint, _text(tokenizer)))
        if ids:
            shown.append(_marked(row, line, tokenizer, paint, _number))
    return "\n".join(shown)


def record(row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
    """A row for programs: the same, exactly, as JSON."""
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


def _require_language(store: Store, language: str) -> None:
    """Raises UserError where the store does not hold a language-script, with close names."""
    manifest = store.manifest
    if language in manifest.skipped:
        raise UserError(f"{store.path} has no {language}: {manifest.skipped[language]}")
    if language not in manifest.names:
        raise UserError(f"{store.path} has no {language!r}{suggest(language, manifest.names)}")


def _row(
    language: str,
    row: int,
    place: int | None,
    tokens: np.ndarray,
    inputs: np.ndarray,
    hidden: np.ndarray,
    length: int,
) -> Row:
    padding = int(len(tokens) - length)
    valid = (array[:length] for array in (tokens, inputs, hidden))
    return Row(language, int(row), place, *valid, padding)


def _next_step(sampler: Sampler, index: int, step: int, planned: int, size: int) -> str:
    def drawn(steps: int) -> int:
        return int(sampler.drawn(steps * size)[index])

    later = bisect.bisect_right(range(planned + 1), drawn(step), lo=step, key=drawn)
    if later > planned:
        return f"none of the {planned} steps planned has one after it"
    return f"the next that has one is step {later}"


def _kinds(row: Row, tokenizer: Tokenizer) -> list[str | None]:
    """How each position is hidden, or None. A random piece that is the old one counts as kept."""
    masked = row.inputs == tokenizer.vocabulary.mask_id
    kinds = np.where(masked, "mask", np.where(row.inputs == row.tokens, "kept", "random"))
    return [str(kind) if hidden else None for kind, hidden in zip(kinds, row.hidden, strict=True)]


def _unknown(row: Row, tokenizer: Tokenizer) -> int:
    return int(np.count_nonzero(row.tokens == tokenizer.vocabulary.unk_id))


def _lines(row: Row, tokenizer: Tokenizer) -> Iterator[slice]:
    """The positions of each line of text that has tokens in the row."""
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
        each = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
        facts += f"; {np.count_nonzero(row.hidden)} hidden: {each}"
    return f"{where}  {facts}"


Spelling = Callable[[int, bool], str]  # (id, whether another stood there) -> text


def _text(tokenizer: Tokenizer) -> Spelling:
    """What stood there as text; a random piece as the vocabulary spells it."""

    def spell(token: int, intruder: bool) -> str:
        return _visible(tokenizer.pieces[token] if intruder else tokenizer.surfaces[token])

    return spell


def _number(token: int, intruder: bool) -> str:
    return str(token) if intruder else f" {token}"


def _marked(row: Row, line: slice, tokenizer: Tokenizer, paint: Paint, spell: Spelling) -> str:
    """One line of a row: its beginning, its text with the hidden tokens marked, its end."""
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
