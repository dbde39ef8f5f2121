"""Sentences of many lengths in batches of few shapes, with little padding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from langsamp_jax.languages.inventory import TableIds


class Padded(NamedTuple):
    """A batch on the host. Its last rows may be empty: all padding, of no sentence."""

    chosen: np.ndarray  # int64 [sentences]: which sentence is in each of the first rows
    tokens: np.ndarray  # int32 [rows, length]
    attention_mask: np.ndarray  # bool [rows, length], False on padding


def split_lines(ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Returns what ``Tokenizer.encode`` gives, line by line."""
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


def truncate(
    sentences: Sequence[np.ndarray], max_length: int, eos_id: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Cuts sentences to ``max_length`` tokens, of which the last stays ``</s>``; and returns bool
    [sentences], which were longer."""
    ending = np.array([eos_id], np.int32)
    cut = [
        np.concatenate([ids[: max_length - 1], ending]) if len(ids) > max_length else ids
        for ids in sentences
    ]
    return cut, np.array([len(ids) > max_length for ids in sentences], bool)


def bucketed_batches(
    sentences: Sequence[np.ndarray],
    pad_id: int,
    max_length: int,
    tokens_at_once: int,
    devices: int,
) -> Iterator[Padded]:
    """Yields batches of sentences of about the same length, the longest first.

    There is one number of rows for each length, a multiple of ``devices``, so that about twenty
    shapes are compiled for any text; all batches but the last are full.

    Args:
      max_length: of the model, which has no position for padding beyond it.
      tokens_at_once: of a batch, padding included; a longer sentence is a batch of its own.
    """
    order = np.argsort([-len(ids) for ids in sentences], kind="stable")
    start = 0
    while start < len(order):
        length = min(bucket_length(len(sentences[order[start]])), max_length)
        rows = max(1, tokens_at_once // (length * devices)) * devices
        chosen = order[start : start + rows]
        yield Padded(chosen, *padded([sentences[i] for i in chosen], rows, length, pad_id))
        start += rows


def padded(
    sentences: Sequence[np.ndarray], rows: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns int32 tokens and bool mask, [rows, length]."""
    tokens = np.full((rows, length), pad_id, np.int32)
    attention_mask = np.zeros((rows, length), bool)
    for row, mask, ids in zip(tokens, attention_mask, sentences, strict=False):
        row[: len(ids)], mask[: len(ids)] = ids, True
    return tokens, attention_mask


def repeat_ids(ids: TableIds, rows: int) -> TableIds:
    """Returns the ids of one language-script for every row of a batch, int32 [rows] each."""
    return TableIds(*(np.full(rows, row, np.int32) for row in ids))


def bucket_length(length: int) -> int:
    """Rounds ``length`` up to a multiple of 8, of 16 past 64, of 32 past 128, and so on."""
    step = 1 << max(3, (length - 1).bit_length() - 3)
    return -(-length // step) * step
