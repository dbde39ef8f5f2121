"""Whether another library gives the same ids as a tokenizer here: a sample is encoded both ways."""

import random
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers

_DRAWN_LINES, _PIECES_A_LINE, _ODD_PIECES = 200, 8, 100

# Spaces, case, digits, marks, signs and words of many scripts.
_LINES = (
    "| |a|A B|two  spaces|  in front|behind  |a\ttab|x\u00a0y z\u3000w|a\u200bb|a\u00adb|▁ low a▁b|"
    "e\u0301te\u0301|ﬁne Ⅷ ½|ＡＢ １２|ÀÉÎÕÜ ßẞ Straße|1234567 12,5 3.14 1st x86|don't U.S.A. e.g.|"
    "http://a.b/c?d=e&f|😀 👍🏽 🇩🇪|…—«»“”„|a-b_c (d) [e]|The quick brown fox|Der schnelle Fuchs|"
    "le renard brun rapide|el zorro marrón|być albo nie być|İstanbul'da ılık|đường phố Việt Nam|"
    "быстрая лиса|ґрунт їжак|η γρήγορη αλεπού|արագ աղվես|სწრაფი მელა|שועל מהיר|الثعلب السريع|"
    "روباه چابک|तेज़ लोमड़ी|দ্রুত শিয়াল|வேகமான நரி|వేగవంతమైన నక్క|ವೇಗದ ನರಿ|സൂര്യൻ|ඉක්මන්|สุนัขจิ้งจอก|"
    "ໝາຈອກ|မြေခွေး|កញ្ជ្រោង|ཝ་མོ་|敏捷的狐狸|すばやいキツネ|빠른 여우|ፈጣን ቀበሮ"
).split("|")
_LONG_WORD = "x" * 150  # longer than WordPiece usually takes


class Encoder(Protocol):
    """Has what a ``Tokenizer`` has; its module imports this one."""

    vocabulary: Any
    surfaces: list[str]
    scores: np.ndarray | None

    def encode(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...


def sample(tokenizer: Encoder, odd: Iterable[int] = ()) -> list[str]:
    """Returns lines of many scripts, and lines made of the tokenizer's own pieces.

    Args:
      odd: ids of pieces that are treated in a way of their own; each gets lines.
    """
    special = set(tokenizer.vocabulary.special_ids)
    surfaces = tokenizer.surfaces
    own = [surface for i, surface in enumerate(surfaces) if i not in special] or [""]
    wide = (i for i, surface in enumerate(surfaces) if " " in surface[1:] and i not in special)
    lines, generator = [*_LINES, _LONG_WORD], random.Random(0)
    for i in [*odd, *wide][:_ODD_PIECES]:
        lines += [surfaces[i], f"x{surfaces[i]}x", f"x {surfaces[i]} x"]
    for _ in range(_DRAWN_LINES):
        lines.append("".join(generator.choices(own, k=_PIECES_A_LINE)))
    return lines


def differing_lines(
    tokenizer: Encoder, other: tokenizers.Tokenizer, lines: Sequence[str]
) -> list[str]:
    """Returns the lines for which ``other`` gives other ids, special ones included.

    Two ways of splitting whose scores are equal up to rounding count as the same: which of them
    is taken depends on how a library adds up.
    """
    ids, lengths = tokenizer.encode(lines)
    ours = np.split(ids, np.cumsum(lengths)[:-1])
    other.encode_special_tokens = True
    theirs = [np.array(encoding.ids, np.int32) for encoding in other.encode_batch(lines)]
    return [
        line
        for line, mine, their in zip(lines, ours, theirs, strict=True)
        if not np.array_equal(mine, their) and not _tied(tokenizer, mine, their)
    ]


def _tied(tokenizer: Encoder, ids: np.ndarray, others: np.ndarray) -> bool:
    if tokenizer.scores is None:
        return False
    text, other_text = ("".join(tokenizer.surfaces[i] for i in each) for each in (ids, others))
    scores = (tokenizer.scores[each].sum(dtype=np.float64) for each in (ids, others))
    return text == other_text and bool(np.isclose(*scores, rtol=1e-6))
