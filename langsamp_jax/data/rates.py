"""How often each language-script is drawn: from counts to rates."""

import numpy as np


def temperature_rates(
    examples: np.ndarray, temperature: float, maximum: np.ndarray | int | None = None
) -> np.ndarray:
    """Returns p_l in proportion to min(n_l, maximum)^(1/T): seqio's ``mixing_rate_num_examples``.

    T = 1 is proportional to size, T = 1/0.3 is the alpha = 0.3 of XLM-R and Glot500, T -> inf is
    uniform. A language without examples has rate 0.

    Args:
      examples: [languages] counts n_l.
      maximum: one for all, or [languages].

    Returns:
      float64 [languages], summing to 1.
    """
    capped = np.minimum(examples, np.inf if maximum is None else maximum).astype(np.float64)
    weights = np.where(capped > 0, capped ** (1.0 / temperature), 0.0)
    return weights / weights.sum()


def reference_sentences(
    sentences: np.ndarray,
    seen: np.ndarray,
    factor: float = 0.3,
    scale: int = 30,
    minimum: int = 30_000,
) -> np.ndarray:
    """Returns the sentences that an epoch of the published code draws from each language-script.

    Languages that XLM-R has seen get ``int(scale * min_c)`` each; unseen ones get
    ``int(scale * min_c * p_l / min p)`` with p_l proportional to c_l^factor, where min_c is the
    smallest unseen count of at least ``minimum``. Unseen languages below that are left out.

    Args:
      sentences: int [languages], c_l.
      seen: bool [languages], whether XLM-R was trained on it.

    Returns:
      int64 [languages].
    """
    unseen = ~seen & (sentences >= minimum)
    smallest = int(sentences[unseen].min()) if unseen.any() else minimum
    power = sentences.astype(np.float64) ** factor
    quota = scale * smallest * power / float(smallest) ** factor
    return np.where(seen, scale * smallest, np.where(unseen, quota, 0)).astype(np.int64)


def limited_rows(rates: np.ndarray, total: int, most: np.ndarray) -> np.ndarray:
    """Returns rows of each language that sum to ``total``: in proportion to rates, within limits.

    What a language would have above its limit goes to those below theirs, in proportion to their
    rates, until none is above (water filling); fractions go by largest remainder.

    Args:
      rates: [languages].
      most: int64 [languages]; those with a rate above 0 must sum to ``total`` or more.

    Returns:
      int64 [languages], none above ``most``.
    """
    wanted = rates / rates.sum() * total
    full = np.zeros(len(rates), bool)
    while np.any(over := ~full & (wanted > most)):
        full |= over
        wanted[full] = most[full]
        free = wanted[~full].sum()
        if free > 0:
            wanted[~full] *= (total - most[full].sum()) / free
    rows = np.floor(wanted).astype(np.int64)
    largest_remainder = np.argsort(rows - wanted, kind="stable")
    rows[largest_remainder[: total - int(rows.sum())]] += 1  # with a fraction: below its limit
    return rows
