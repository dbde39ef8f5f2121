"""What ``evaluate concepts`` gives of a step, from average precisions that are made up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from langsamp_jax.neurons.concept_labels import Concepts
from langsamp_jax.neurons.concepts import compare_languages

LAYERS, WIDTH, CONCEPTS = 2, 40, 8


def step_record(step: int | None, strength: float, names: Sequence[str]) -> dict[str, Any]:
    """Noise, and in the second layer a neuron for each concept that all languages have."""
    rng = np.random.default_rng(0 if step is None else step)
    labels = np.random.default_rng(0).random((200, CONCEPTS)) < 0.1
    precisions = rng.random((len(names), 2, LAYERS * WIDTH, 2 * CONCEPTS)) / 5
    concepts = np.arange(CONCEPTS)
    precisions[:, :, WIDTH + concepts, concepts] += strength
    words = [f"noun-{k}" for k in concepts]
    rare = {"too rare": ["noun-99"]}
    known = Concepts(words, labels, [{}] * CONCEPTS, rare, {}, "world.json")
    rises = np.eye(2) * strength
    forcing = {"concepts": words[:2], "experts": [*names[:2]], "readout": [*names[:2]],
               "own": rises.tolist(), "other": (rises / 2).tolist(), "random": [0.0, 0.0],
               "specific": {"within": {"value": strength, "low": 0.0, "high": 1.0}}}  # fmt: skip
    return {
        "step": step,
        "units": "neurons",
        "unit_count": LAYERS * WIDTH,
        "labels": known.source,
        "concepts": words,
        "left_out": known.left_out,
        "languages": [*names],
        "sentences": 200,
        "layers": LAYERS,
        **compare_languages(precisions, known, names, LAYERS),
        "forcing": forcing,
        "planted": {"token": ",", "precision": dict.fromkeys(names, 1.0),
                    "expert": dict.fromkeys(names, True)},
        "unit_precisions": precisions[..., :2].mean(axis=(0, 1)).T.tolist(),
        "truncated": 0,
        "skipped": {},
    }  # fmt: skip
