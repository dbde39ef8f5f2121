"""The batches of fine-tuning: every example once an epoch, but for the published defect."""

import dataclasses
import math

import numpy as np
import pytest

from langsamp_jax.evaluation.config import Protocol
from langsamp_jax.evaluation.finetune import batches

SENTENCES = Protocol(True, 2e-4, 8, 16, 2, 24, 1, math.inf)  # batches of 16, in parts of 8


@pytest.mark.parametrize(("count", "size"), [(104, 16), (101, 16), (16, 16), (7, 16), (33, 4)])
def test_every_example_is_seen_once_an_epoch(count, size):
    protocol = dataclasses.replace(SENTENCES, batch_size=size)
    first, second = (batches(count, protocol, 0, epoch) for epoch in (1, 2))
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == list(range(count))
        assert all(len(batch) == size for batch in epoch[:-1])
    again, other = (batches(count, protocol, seed, 1) for seed in (0, 1))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    for different in (second, other):
        assert (np.concatenate(first) != np.concatenate(different)).any()


def test_the_published_batches_are_the_last_parts():
    published = dataclasses.replace(SENTENCES, published_defect=True)
    for count, last in ((104, 8), (101, 5), (110, 6), (7, 7)):
        whole, parts = (batches(count, protocol, 0, 1) for protocol in (SENTENCES, published))
        assert [len(part) for part in parts] == [8] * (len(whole) - 1) + [last]
        for batch, part in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(batch[-len(part) :], part)
