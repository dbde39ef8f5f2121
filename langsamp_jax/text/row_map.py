"""Which row of an old embedding table each row of a new one comes from, by piece.

Never by position: ``<mask>`` is the last row of XLM-R's table, so in a longer vocabulary its
trained row has another number.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from langsamp_jax.errors import UserError

NEW_ROW_SCALE = 0.02  # standard deviation of what is drawn: XLM-R's initializer_range
_UNKNOWN = {"<unk>", "[UNK]"}


class OldPieces(Protocol):
    """Has a vocabulary in id order, and makes a function that spells a string as its ids."""

    pieces: Sequence[str]

    def speller(self) -> Callable[[str], list[int]]: ...


@dataclasses.dataclass(frozen=True)
class RowMap:
    """Says where the rows of a new table come from.

    Attributes:
      carried: int32 [new_size], the old row of the same piece, -1 for a new piece.
      spelled: of each new piece, the old rows that spell it together; a new piece with a part
        that is unknown is not in it.
      rarer: of each spelled piece, its log-probability less the mean of those of its parts; 0
        where the tokenizer has none.
    """

    carried: np.ndarray
    spelled: dict[int, tuple[int, ...]]
    rarer: dict[int, float]

    @property
    def unspelled(self) -> int:
        """Counts the new pieces that have an unknown part."""
        return int(np.count_nonzero(self.carried < 0)) - len(self.spelled)


def row_map(
    old: OldPieces, new_pieces: Sequence[str], scores: Sequence[float] | None = None
) -> RowMap:
    """Maps the pieces of an extended vocabulary, in id order, to the rows of the old one.

    Args:
      scores: the log-probability of each new piece, of a unigram model.

    Raises:
      UserError: an old piece is missing from the new vocabulary.
    """
    old_rows = {piece: row for row, piece in enumerate(old.pieces)}
    if missing := sorted(old_rows.keys() - set(new_pieces), key=old_rows.get):
        raise UserError(
            f"the text's tokenizer lacks {len(missing):,} of the {len(old_rows):,} pieces of the "
            f"model ({' '.join(missing[:3])}{' …' * (len(missing) > 3)}); "
            "it must be the model's own or an extension of it (langsamp tokenizer extend)"
        )
    carried = np.array([old_rows.get(piece, -1) for piece in new_pieces], np.int32)
    unknown = {old_rows[piece] for piece in _UNKNOWN & old_rows.keys()}
    new = np.flatnonzero(carried < 0).tolist()
    spell, spelled = old.speller() if new else None, {}
    for row in new:
        parts = tuple(spell(new_pieces[row]))
        if unknown.isdisjoint(parts):
            spelled[row] = parts
    rarer = dict.fromkeys(spelled, 0.0)
    if scores is not None:
        moved = np.empty(len(old_rows), np.int64)  # old row -> new row
        moved[carried[carried >= 0]] = np.flatnonzero(carried >= 0)
        values = np.asarray(scores, np.float64)
        rarer = {
            row: float(values[row] - values[moved[list(parts)]].mean())
            for row, parts in spelled.items()
        }
    return RowMap(carried, spelled, rarer)


def new_rows(
    rows: RowMap,
    part: slice,
    read_old_rows: Callable[[np.ndarray], np.ndarray],
    init: Literal["mean", "normal"],
    seed: int,
    columns: tuple[int, slice] | None,
) -> np.ndarray:
    """Makes any part of the new table; carried rows bit for bit.

    New rows are the mean of the old rows that spell them (``mean``), or drawn from N(0, 0.02)
    (``normal``, and with ``mean`` where a part is unknown). Elements of a bias (``columns``
    None) are zero where a row would be drawn, and lower than the mean by as much as the piece is
    rarer than its parts: otherwise a new piece would be as likely as the frequent short ones
    that spell it.

    Args:
      part: which rows of the new table.
      read_old_rows: int [n] -> float32 [n, columns], or [n] for a bias: any old rows, in the
        order asked for.
      seed: with the number of the row decides what is drawn.
      columns: the width of the table, and which of its columns are wanted.

    Returns:
      float32 [rows, columns], or [rows] for a bias.
    """
    carried = rows.carried[part]
    old = carried >= 0
    wide = () if columns is None else (len(range(columns[0])[columns[1]]),)
    values = np.zeros((len(carried), *wide), np.float32)
    if old.any():
        values[old] = read_old_rows(carried[old])
    groups = {}
    for row in np.flatnonzero(~old).tolist():
        if init == "mean" and (parts := rows.spelled.get(part.start + row)):
            groups[row] = parts
        elif columns is not None:
            width, selected = columns
            drawn = np.random.default_rng((seed, part.start + row)).standard_normal(width, "f4")
            values[row] = NEW_ROW_SCALE * drawn[selected]
    if groups:
        values[list(groups)] = _means(list(groups.values()), read_old_rows)
        if columns is None:
            values[list(groups)] += [rows.rarer[part.start + row] for row in groups]
    return values


def _means(
    groups: Sequence[tuple[int, ...]], read_old_rows: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Returns the mean of the old rows of each group."""
    lengths = np.array([len(group) for group in groups])
    needed, position = np.unique(np.concatenate(groups), return_inverse=True)
    sums = np.add.reduceat(read_old_rows(needed)[position], np.cumsum(lengths) - lengths)
    return sums / lengths.astype(np.float32).reshape(-1, *[1] * (sums.ndim - 1))
