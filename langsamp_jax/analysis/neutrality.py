"""Protocol: language neutrality, how alike translations are, beyond how alike all sentences are.

For languages A and B with n sentences in common, at every layer: ``matched`` is the mean cosine
of the n translations, ``random`` the mean over all other pairs of one sentence of A and one of B,
and ``gap`` their difference. Raw cosines rise for all pairs together where the states crowd into a
cone, so the gap and retrieval are what counts; the same is given after the mean of each language
is taken away (``_centred``). ``top1`` is how often a sentence's nearest in the other language is
its translation, the mean of both directions. The definitions are ours; the paper leaves them open.
"""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import Encode, sentence_encoder
from langsamp_jax.evaluation.jobs import Journal, show_skipped
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.io.progress import Progress, table
from langsamp_jax.languages.aligned_text import aligned_corpus

MEASURES = ("matched", "random", "gap", "matched_centred", "random_centred", "gap_centred", "top1")
_TIE = 1e-6  # cosines of float32 states that differ by less are the same
_ROUNDING = 1e-5  # of a vector's length: without its language's mean, less than that is nothing


def evaluate(
    model: LoadedModel, data: Path, journal: Journal, pivot: str, sentences: int | None
) -> dict[str, Any]:
    """Returns ``evaluate_neutrality`` of a folder of files that are aligned with that of ``pivot``.

    Args:
      sentences: only the first so many lines; None: all.

    Raises:
      UserError: no file is aligned with that of the pivot, or as ``evaluate_neutrality``.
    """
    lines, skipped = aligned_corpus(data, pivot)
    if len(lines) < 2:
        raise UserError(f"{data} has no file that is aligned with {pivot}.txt")
    lines = {name: text[:sentences] for name, text in lines.items()}
    layers = range(model.config.num_hidden_layers + 1)
    encode, size = sentence_encoder(model, layers), model.config.hidden_size
    record = evaluate_neutrality(encode, len(layers), size, lines, journal)
    return {**record, "skipped": {**skipped, **record["skipped"]}}


def show(record: Mapping[str, Any]) -> str:
    rows = [
        {"layer": layer, **{name: record["mean"][name][layer] for name in MEASURES}}
        for layer in range(record["num_layers"])
    ]
    headers = {name: f"{name.replace('_', ' ')}:.3f" for name in MEASURES}
    counts = len(record["pairs"]), len(record["languages"])
    lines = [
        table(rows, {"layer": "layer:d", **headers}),
        "means of {:,} pairs of {} languages".format(*counts),
    ]
    return "\n".join([*lines, *show_skipped(record)])


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    return {f"last layer/{name}": layers[-1] for name, layers in record["mean"].items()}


def evaluate_neutrality(
    encode: Encode,
    num_layers: int,
    hidden_size: int,
    lines: Mapping[str, Sequence[str]],
    journal: Journal,
) -> dict[str, Any]:
    """Takes every measure of every pair of languages at every layer.

    Args:
      encode: for all layers, see ``sentence_encoder``.
      num_layers: of ``encode``, the embeddings included.
      lines: of each language as many, of which line i says the same; an empty one is missing.

    Returns:
      ``languages``; ``pairs`` [pairs, 2] of indices into them; ``sentences`` [pairs]; each of
      ``MEASURES`` [pairs, layers]; their ``mean`` over pairs [layers]; ``skipped``; ``truncated``.

    Raises:
      UserError: no two languages have two lines in common.
    """
    skipped, names, truncated = {}, list(lines), 0
    shape = (len(names), num_layers, len(lines[names[0]]), hidden_size)
    has_line = np.zeros((len(names), shape[2]), bool)
    # On disk: 205 languages of 1,000 sentences are 8 GB with XLM-R base.
    with tempfile.TemporaryFile() as file:
        vectors = np.memmap(file, np.float32, "w+", shape=shape)
        with Progress("encoding", len(names), "languages") as progress:
            for index, name in enumerate(names):
                present = np.flatnonzero([bool(line) for line in lines[name]])
                try:
                    encoded = encode([lines[name][i] for i in present], name)
                except UserError as error:
                    skipped[name] = str(error)
                else:
                    vectors[index][:, present] = encoded.vectors
                    has_line[index, present] = True
                    truncated += int(encoded.truncated.sum())
                progress.advance(1)
        used = [index for index in range(len(names)) if names[index] not in skipped]
        if not any(
            (has_line[a] & has_line[b]).sum() > 1 for a, b in itertools.combinations(used, 2)
        ):
            reasons = "".join(f"; {name}: {why}" for name, why in list(skipped.items())[:1])
            raise UserError(f"no two languages have two lines in common{reasons}")

        def row(name: str) -> list[tuple[int, int, int, list[list[float]]]]:
            first = used.index(names.index(name))
            a, pairs = used[first], []
            mine = jnp.asarray(vectors[a])  # on the device, once for all pairs
            for second in range(first + 1, len(used)):
                b = used[second]
                both = has_line[a] & has_line[b]
                if both.sum() > 1:
                    measured = np.asarray(_compare(mine, vectors[b], has_line[a], has_line[b]))
                    pairs.append((first, second, int(both.sum()), measured.round(6).tolist()))
            return pairs

        rows, _ = journal.each([names[index] for index in used], row)
    return {
        "languages": [names[index] for index in used],
        "num_layers": num_layers,
        **_columns([pair for pairs in rows for pair in pairs]),
        "truncated": truncated,
        "skipped": skipped,
    }


@jax.jit
@jax.default_matmul_precision("highest")  # else accelerators keep 8 or 10 bits of each number
def _compare(a: jax.Array, b: jax.Array, in_a: jax.Array, in_b: jax.Array) -> jax.Array:
    """Returns float32 [measures, layers] of states [layers, n, hidden].

    Args:
      in_a, in_b: bool [n], which sentences there are.
    """
    both = (in_a & in_b).astype(jnp.float32)
    count = both.sum()

    def layer(states: tuple[jax.Array, jax.Array]) -> jax.Array:
        measured = []
        for centred in (False, True):
            x, y = (_unit(x, valid, centred) for x, valid in zip(states, (in_a, in_b), strict=True))
            matched = (both * (x * y).sum(axis=-1)).sum()
            everything = (both @ x) @ (both @ y)
            random = (everything - matched) / (count * (count - 1))
            measured += [matched / count, random, matched / count - random]
        x, y = (_unit(x, valid, False) for x, valid in zip(states, (in_a, in_b), strict=True))
        cosine = x @ y.T
        right = (_nearest(cosine, both) + _nearest(cosine.T, both)) / 2
        return jnp.stack([*measured, right])

    return jax.lax.map(layer, (a, b)).T


def _unit(x: jax.Array, valid: jax.Array, centred: bool) -> jax.Array:
    weight = valid[:, None].astype(jnp.float32)
    least = _ROUNDING * jnp.linalg.norm(x, axis=-1, keepdims=True)
    if centred:
        x = x - (x * weight).sum(axis=0) / jnp.maximum(weight.sum(), 1)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.where(norm <= least, 0, weight * x / jnp.maximum(norm, 1e-12))


def _nearest(cosine: jax.Array, both: jax.Array) -> jax.Array:
    """Returns the share of the rows whose own column is above all others; a tie is none."""
    others = jnp.where(jnp.eye(len(cosine), dtype=bool) | (both[None] == 0), -jnp.inf, cosine)
    return (both * (jnp.diag(cosine) > others.max(axis=1) + _TIE)).sum() / both.sum()


def _columns(pairs: list[tuple[int, int, int, list[list[float]]]]) -> dict[str, Any]:
    columns = {
        "pairs": [[first, second] for first, second, *_ in pairs],
        "sentences": [sentences for *_, sentences, _ in pairs],
    }
    columns |= {name: [pair[3][i] for pair in pairs] for i, name in enumerate(MEASURES)}
    means = {name: np.mean(columns[name], axis=0).tolist() for name in MEASURES}
    return {**columns, "mean": means}
