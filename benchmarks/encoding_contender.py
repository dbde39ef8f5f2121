"""One side of ``encoding.py``: encodes all sentences at every step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from interleave import host_peak, serve

LAYER, BATCH = 8, 100  # the reference's layer, and its batch


class Encoder:
    """A step encodes all sentences; the first writes the vectors too."""

    facts: dict[str, Any] = {}

    def __init__(self, spec: dict[str, Any]):
        lines = json.loads(Path(spec["lines"]).read_text("utf-8"))
        self._lines = lines
        self._encode = {"ours": _ours, "transformers": _transformers}[spec["kind"]](spec["model"])
        np.save(spec["vectors"], self._all())  # compiles, too

    def step(self) -> float:
        return float(np.abs(self._all()).mean())

    def peak_memory(self) -> int:
        return host_peak()

    def _all(self) -> np.ndarray:
        return np.concatenate([self._encode(text, name) for name, text in self._lines.items()])


def _ours(model: str) -> Any:
    from langsamp_jax.evaluation.encoder import sentence_encoder
    from langsamp_jax.evaluation.model import load_model

    encode = sentence_encoder(load_model(Path(model)), [LAYER])
    return lambda lines, name: encode(lines, name).vectors[0]


def _transformers(model: str) -> Any:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    encoder = transformers.XLMRobertaModel.from_pretrained(
        model, add_pooling_layer=False, output_hidden_states=True
    ).eval()

    @torch.no_grad()
    def encode(lines: list[str], name: str) -> np.ndarray:
        found = []
        for start in range(0, len(lines), BATCH):
            batch = tokenizer(
                lines[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=512,
                return_tensors="pt",
            )
            weight = batch["attention_mask"][..., None].float()
            states = encoder(**batch).hidden_states
            means = [(layer * weight).sum(1) / weight.sum(1) for layer in states]
            found.append(means[LAYER].numpy())
        return np.concatenate(found)

    return encode


if __name__ == "__main__":
    serve(Encoder)
