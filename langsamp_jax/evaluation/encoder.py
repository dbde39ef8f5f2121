"""Sentences to vectors: what taps read of each, such as the mean of its tokens' states."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import (
    bucketed_batches,
    padded,
    repeat_ids,
    split_lines,
    truncate,
)
from langsamp_jax.languages.aligned_text import aligned_lines, corpus_files, parallel_sentences
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.edits import Edit, with_blocks
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.models.taps import Taps, mean_over_positions, sum_over_positions
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.text.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """What an ``Encode`` gives of some sentences."""

    vectors: np.ndarray  # float32 [layers, sentences, hidden_size]
    truncated: np.ndarray  # bool [sentences]: which were longer than the model


SENTENCES = 100  # of each language, whose tokens a mean is taken over

Encode = Callable[[Sequence[str], str | None], Encoded]


class Readings(NamedTuple):
    """What taps read of some sentences."""

    values: dict[str, Any]  # of each site what its tap gives, float32 [layers, sentences, ...]
    truncated: np.ndarray  # bool [sentences]: which were longer than the model


Read = Callable[[Sequence[str], str | None], Readings]


class EncoderModel(Protocol):
    """What is read here of a ``LoadedModel``, where its members are described."""

    path: Path
    model: LangSamp
    params: Any
    tokenizer: Tokenizer
    max_length: int
    mesh: jax.sharding.Mesh

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokens_at_once(self) -> int: ...

    def place(self, host: Any) -> Any: ...

    def encoder_ids(self, language_script: str | None) -> TableIds: ...


def protocol_layer(trained: EncoderModel) -> int:
    """Returns the layer that retrieval looks at, two thirds up; the embeddings are layer 0."""
    return round(trained.config.num_hidden_layers * 2 / 3)


def sentence_encoder(trained: EncoderModel, layers: Sequence[int]) -> Encode:
    """Returns a function from sentences of a language-script to their vectors at ``layers``.

    A vector is the mean over all of a sentence's tokens, specials included. Layer 0 is the
    embeddings; layers above the highest that is asked for are not computed. Longer sentences are
    cut to ``trained.max_length`` tokens.
    """
    read = sentence_reader(trained, (("states", mean_over_positions),), top=max(layers))

    def encode(lines: Sequence[str], language_script: str | None) -> Encoded:
        readings = read(lines, language_script)
        return Encoded(readings.values["states"][list(layers)], readings.truncated)

    return encode


def sentence_reader(
    trained: EncoderModel,
    taps: Taps,
    positions: Callable[[np.ndarray], np.ndarray] | None = None,
    top: int | None = None,
) -> Read:
    """Returns a function from sentences of a language-script to what the taps give of them.

    Longer sentences are cut to ``trained.max_length`` tokens. The arguments are those of
    ``token_reader``.
    """
    read = token_reader(trained, taps, positions, top)

    def read_sentences(lines: Sequence[str], language_script: str | None) -> Readings:
        sentences, truncated = sentence_ids(trained, lines)
        return Readings(read(sentences, language_script), truncated)

    return read_sentences


def sentence_ids(
    trained: EncoderModel, lines: Sequence[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the ids of sentences, int32 [tokens] each, cut to what the model reads; and bool
    [sentences], which were longer."""
    sentences = split_lines(*trained.tokenizer.encode(lines))
    return truncate(sentences, trained.max_length, trained.tokenizer.vocabulary.eos_id)


def readable_sentences(
    trained: EncoderModel, corpus: Path, fewest: int
) -> tuple[dict[str, list[str]], np.ndarray, dict[str, str]]:
    """Returns the ``parallel_sentences`` of the languages that the model can read, the numbers of
    their lines, and why not of others.

    Raises:
      UserError: as ``parallel_sentences``; fewer than two languages can be read.
    """
    text, numbers, skipped = parallel_sentences(corpus, fewest)
    lines = {}
    for name, of_language in text.items():
        try:
            trained.encoder_ids(name)
            lines[name] = of_language
        except UserError as error:
            skipped[name] = str(error)
    if len(lines) < 2:
        name, why = next(iter(skipped.items()))
        raise UserError(f"{corpus} has no two languages that the model reads; {name}: {why}")
    return lines, numbers, skipped


def token_reader(
    trained: EncoderModel,
    taps: Taps,
    positions: Callable[[np.ndarray], np.ndarray] | None = None,
    top: int | None = None,
) -> Callable[[Sequence[np.ndarray], str | None], dict[str, Any]]:
    """Returns a function from the ids of sentences of a language-script, int32 [tokens] each, to
    what the taps give of them, see ``Readings``.

    Args:
      taps: each returns arrays [rows, ...].
      positions: from the ids of a sentence to those that the taps are asked about, bool [tokens];
        None: all tokens, specials included.
      top: the highest layer that is computed; None: all are.

    Raises:
      UserError: by the function, where the model lacks the language, or a tap gives a value that is
        not finite.
    """
    model, params = trained.model, trained.params
    if top is not None:
        model, params = lower_layers(model, params, top)
    vocabulary = trained.tokenizer.vocabulary

    def read(sentences: Sequence[np.ndarray], language_script: str | None) -> dict[str, Any]:
        number = len(sentences)
        if not number:  # one of </s> alone tells the shapes
            sentences = [np.array([vocabulary.eos_id], np.int32)]
        tables = trained.encoder_ids(language_script)
        limits = trained.max_length, trained.tokens_at_once, trained.mesh.size
        batches = []
        with use_mesh(trained.mesh):
            for batch in bucketed_batches(sentences, vocabulary.pad_id, *limits):
                asked = batch.attention_mask
                if positions is not None:
                    rows = [positions(sentences[i]) for i in batch.chosen]
                    asked = padded(rows, *asked.shape, False)[0].astype(bool)
                ids = repeat_ids(tables, len(batch.tokens))
                arguments = trained.place((batch.tokens, batch.attention_mask, ids, asked))
                values = _read(model, taps, params, *arguments)
                batches.append((batch.chosen, values))
        found = _in_order(batches, number)
        for site, values in found.items():
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values)):
                text = language_script or "the text"
                raise UserError(
                    f"{trained.path}: {site} gives values that are not finite in {text}"
                )
        return found

    return read


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once for all checkpoints
def _read(
    model: LangSamp,
    taps: Taps,
    params: Any,
    tokens: jax.Array,
    attention_mask: jax.Array,
    ids: TableIds,
    positions: jax.Array,
) -> dict[str, Any]:
    inputs = tokens, attention_mask, ids, taps, positions
    return model.apply({"params": params}, *inputs, method=model.read)


def _in_order(batches: Sequence[tuple[np.ndarray, Any]], sentences: int) -> Any:
    """Returns float32 [layers, sentences, ...] from leaves [layers, rows, ...] of each batch."""

    def joined(*leaves: jax.Array) -> np.ndarray:
        layers, _, *shape = leaves[0].shape
        values = np.zeros((layers, max(1, sentences), *shape), np.float32)
        for (chosen, _), leaf in zip(batches, leaves, strict=True):
            values[:, chosen] = np.asarray(leaf, np.float32)[:, : len(chosen)]
        return values[:, :sentences]

    # Now, so that the devices never waited for the host.
    return jax.tree.map(joined, *(values for _, values in batches))


def reference_means(
    model: EncoderModel, edits: Sequence[Edit], reference: Path | None
) -> dict[str, Any]:
    """Returns the means that ``edits`` need, as ``apply_edits`` takes them."""
    sites = sorted({edit.site for edit in edits if edit.site})
    if not sites:
        return {}
    if reference is None:
        edit = next(str(edit) for edit in edits if edit.site)
        raise UserError(f"{edit} needs a text over which the mean is: --reference CORPUS")
    return site_means(model, sites, reference_text(model, reference))


def reference_text(model: EncoderModel, corpus: Path) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields each language-script of a folder of text, and the ids of its first sentences."""
    for name, file in corpus_files(corpus).items():
        lines = [line for line in aligned_lines(file) if line][:SENTENCES]
        yield name, sentence_ids(model, lines)[0]


def site_means(
    model: EncoderModel, sites: Collection[str], text: Iterable[tuple[str, Sequence[np.ndarray]]]
) -> dict[str, Any]:
    """Returns, of each site, the mean over all tokens of a text, float32 [layers, width].

    Args:
      text: by language-script the ids of sentences, int32 [tokens] each.

    Raises:
      UserError: the text has no tokens.
    """
    read = token_reader(model, tuple((site, sum_over_positions) for site in sites))
    sums, tokens = dict.fromkeys(sites, 0.0), 0.0
    for name, sentences in text:
        values = read(sentences, name)
        for site in sites:
            total, count = (part.sum(axis=1, dtype=np.float64) for part in values[site])
            sums[site] = sums[site] + total
        tokens += count[0]
    if not tokens:
        raise UserError("the text over which means are taken has no tokens")
    return {site: jnp.asarray(total / tokens, jnp.float32) for site, total in sums.items()}


def lower_layers(model: LangSamp, params: Any, layer: int) -> tuple[LangSamp, Any]:
    """Returns the model cut off above a layer, whose states stay what they were.

    An encoder that normalises in front of its blocks does so behind the last one too: it keeps one
    block more, so that what was in the middle is not taken for the end.
    """
    config = model.config
    num_layers = min(config.num_hidden_layers, max(1, layer + config.norm_first))
    return with_blocks(model, params, range(num_layers))
