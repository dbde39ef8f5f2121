"""Sentence retrieval across languages (the protocol of SR-B and SR-T).

A sentence is the mean over all of its tokens, specials included, of one layer's states: the 8th
of 12 in the published code, the layer at two thirds of the depth here. The pivot's sentences are
the queries, another language's the pool, compared by cosine. The language and script vectors play
no part, except in the input-side ablation, whose encoder needs them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.corpus import aligned_lines, corpus_files
from langsamp_jax.errors import UserError
from langsamp_jax.evaluate.cosine import cosines
from langsamp_jax.inventory import Inventory
from langsamp_jax.model import LangSamp
from langsamp_jax.progress import Progress
from langsamp_jax.run import Run
from langsamp_jax.tokenizer import Tokenizer, Vocabulary

_LENGTH_MULTIPLE = 32  # lengths are rounded up to this: few shapes to compile
_BATCH = 64

Embed = Callable[[Sequence[str], str], np.ndarray]


def evaluate_retrieval(embed: Embed, corpus: Path, pivot: str) -> list[dict[str, Any]]:
    """Top-1 and top-10 accuracy of every language of a line-aligned corpus against ``pivot``.

    Args:
      embed: sentences of a language-script to float [sentences, hidden_size], see
        ``sentence_encoder``.
      corpus: a folder of ``iso639-3_Script.txt`` files in which line i says the same everywhere;
        an empty line is a missing sentence, and that pair is left out.
      pivot: the language-script of the queries.

    Returns:
      one record a language: ``language``, ``sentences``, ``top1``, ``top10`` and what picking at
      random gives, ``chance_top1``, ``chance_top10``.
    """
    files = corpus_files(corpus)
    if pivot not in files:
        raise UserError(f"{corpus} has no {pivot}.txt to take the queries from; choose --pivot")
    lines = {name: aligned_lines(file) for name, file in files.items()}
    queries = embed(lines[pivot], pivot)
    records = []
    others = [name for name in files if name != pivot]
    with Progress("retrieval", len(others), "languages") as progress:
        for name in others:
            both = zip(lines[pivot], lines[name], strict=False)
            pairs = [i for i, (a, b) in enumerate(both) if a and b]
            if pairs:
                pool = embed([lines[name][i] for i in pairs], name)
                rank = ranks(queries[pairs], pool)
                records.append(
                    {
                        "language": name,
                        "sentences": len(pairs),
                        "top1": float((rank < 1).mean()),
                        "top10": float((rank < 10).mean()),
                        "chance_top1": 1 / len(pairs),
                        "chance_top10": min(1.0, 10 / len(pairs)),
                    }
                )
            progress.advance(1)
    if not records:
        raise UserError(f"{corpus} has no sentences that are aligned with {pivot}")
    return records


def ranks(queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """How many wrong sentences of the pool are at least as close to query i as sentence i is.

    Ties count as wrong, so that a collapsed encoder scores nothing; rounding makes no winner.

    Args:
      queries, pool: float [n, d], row i of one translating row i of the other.

    Returns:
      int64 [n].
    """
    similarity = cosines(queries, pool)
    return (similarity >= np.diag(similarity)[:, None] - 1e-10).sum(axis=1) - 1


def run_encoder(run: Run, params: Any) -> Embed:
    """The sentence encoder of a run, at the lengths it was trained on."""
    return sentence_encoder(run.model(), params, run.tokenizer, run.inventory, run.sequence_length)


def sentence_encoder(
    model: LangSamp,
    params: Any,
    tokenizer: Tokenizer,
    inventory: Inventory,
    max_length: int | None = None,
) -> Embed:
    """A function from sentences to their mean states.

    Longer sentences are cut to ``max_length`` tokens, by default as many as the model has positions
    for; give the length of the rows it was trained on where that is less.
    """
    max_length = max_length or model.config.max_length
    layer = round(model.config.num_hidden_layers * 2 / 3)
    needs_ids = model.config.placement == "input"

    @jax.jit
    def mean_states(params: Any, *arguments: jax.Array) -> jax.Array:
        states = model.apply({"params": params}, *arguments, method=model.hidden_states)[layer]
        weight = arguments[1][..., None].astype(jnp.float32)
        return (states * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)

    def embed(lines: Sequence[str], language_script: str) -> np.ndarray:
        ids, lengths = tokenizer.encode(lines)
        sentences = np.split(ids, np.cumsum(lengths)[:-1])
        tables = inventory.ids(language_script) if needs_ids else (0, 0)
        language_ids, script_ids = (np.full(_BATCH, row, np.int32) for row in tables)
        order = np.argsort(lengths, kind="stable")
        vectors = np.zeros((len(lines), model.config.hidden_size), np.float32)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            padded = _pad([sentences[i] for i in chosen], max_length, tokenizer.vocabulary)
            states = mean_states(params, *padded, language_ids, script_ids)
            vectors[chosen] = states[: len(chosen)]
        return vectors

    return embed


def _pad(
    sentences: list[np.ndarray], max_length: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """int32 tokens and bool mask, [_BATCH, length]; a sentence that is cut keeps its ``</s>``."""
    longest = max(map(len, sentences))
    length = min(max_length, -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
    tokens = np.full((_BATCH, length), vocabulary.pad_id, np.int32)
    attention_mask = np.zeros((_BATCH, length), bool)
    for row, mask, sentence in zip(tokens, attention_mask, sentences, strict=False):
        cut = sentence[:length]
        row[: len(cut)], mask[: len(cut)] = cut, True
        if len(sentence) > length:
            row[-1] = vocabulary.eos_id
    return tokens, attention_mask
