"""Grows the vocabulary of a SentencePiece unigram model for languages that it spells badly."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data_pipelines.tokenizers.training import (
    Lines,
    LineSample,
    character_counts,
    normalized,
    say,
    train_unigram,
    unknown_letters,
)
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import new_folder, require_absent, write_bytes, write_text
from langsamp_jax.io.progress import Progress
from langsamp_jax.text.huggingface_files import (
    export_fault,
    require_unigram,
    write_tokenizer,
    xlmr_pieces,
)
from langsamp_jax.text.row_map import RowMap, row_map
from langsamp_jax.text.tokenizer import SentencePieceTokenizer, load_tokenizer

_CHARACTER_COVERAGE = 0.9995  # of the characters of each language-script
_MAX_LENGTH = 512  # tokens, in the Hugging Face tokenizer's settings

_NORMAL = ModelProto.SentencePiece.NORMAL


class Extension(NamedTuple):
    """The longer tokenizer, and the rows of the old table that its rows come from."""

    tokenizer: SentencePieceTokenizer
    rows: RowMap


def extend_tokenizer(
    base: Path,
    corpus: Path,
    new_pieces: int,
    output: Path,
    temperature: float = 1 / 0.3,
    max_sentences: int = 1_000_000,
    seed: int = 0,
) -> Extension:
    """Appends the ``new_pieces`` best pieces of a model trained on ``corpus`` that ``base`` lacks.

    Characters that ``base`` lacks come first: of each language-script those that make up 99.95%
    of its text. Old pieces keep their ids and scores; ``<mask>`` stays last, so its id moves. The
    same input gives the same bytes.

    ``output`` becomes a folder with ``tokenizer.model``, the same tokenizer for transformers in
    ``huggingface/``, and ``row_map.tsv``: of each new id its piece and the old ids that its row
    comes from, one or the mean of several.

    Raises:
      UserError: bad input, a ``base`` that is no unigram model in XLM-R's layout, text that gives
        fewer pieces, or an ``output`` that exists.
    """
    output = Path(output)
    require_absent(output)
    if new_pieces < 1:
        raise UserError(f"--new_pieces {new_pieces}: expected a whole number above 0")
    old = load_tokenizer(base)
    if not isinstance(old, SentencePieceTokenizer):
        raise UserError(f"{base} is no SentencePiece model; only those can be extended")
    require_unigram(old, str(base))
    if (fault := export_fault(old)) is not None:
        raise UserError(f"{base} {fault}; it cannot be extended")
    old_pieces = xlmr_pieces(old, str(base))
    in_base = {*old_pieces.pieces, " "}
    sample = LineSample.draw(corpus, temperature, max_sentences, seed)
    lines = normalized(sample, old)
    counts = dict(zip(sample.names, map(character_counts, lines()), strict=True))

    characters = {character for of_name in counts.values() for character in of_name}
    covering = {character for of_name in counts.values() for character in _covering(of_name)}
    needed = covering - in_base
    if len(needed) > new_pieces:
        raise UserError(
            f"--new_pieces {new_pieces}: {len(needed):,} characters of {corpus} are not in {base}; "
            "each of them needs a piece"
        )
    say(sample.notes)
    scores = _missing_pieces(lines, new_pieces, in_base, needed, len(characters), corpus)
    ranked = sorted(scores, key=lambda piece: (piece not in needed, -scores[piece], piece))
    chosen = {piece: scores[piece] for piece in ranked[:new_pieces]}
    tokenizer = SentencePieceTokenizer(_appended(old.model, chosen))
    say(unknown_letters(counts, tokenizer))
    extension = Extension(tokenizer, row_map(old_pieces, tokenizer.pieces, tokenizer.scores))
    with new_folder(output) as folder:
        write_bytes(folder / "tokenizer.model", tokenizer.model)
        (folder / "huggingface").mkdir()
        write_tokenizer(tokenizer, folder / "huggingface", _MAX_LENGTH)
        write_text(folder / "row_map.tsv", _row_map_table(extension))
    return extension


def _covering(counts: Counter[str]) -> Iterator[str]:
    """Yields the most frequent characters of a language-script, those that cover its text."""
    rest = counts.total()
    rare = (1 - _CHARACTER_COVERAGE) * rest
    for character, count in counts.most_common():
        if rest <= rare:
            return
        yield character
        rest -= count


def _missing_pieces(
    lines: Lines,
    number: int,
    in_base: set[str],
    needed: set[str],
    num_characters: int,
    corpus: Path,
) -> dict[str, float]:
    """Returns log-probabilities of at least ``number`` pieces that the base lacks, ``needed``
    among them. Raises UserError if the text gives fewer."""
    vocab_size = num_characters + 2 * number  # the base has some of them
    while True:
        with Progress("tokenizer: reading", sum(1 for _ in lines()), "languages") as progress:
            # Counts instead of copies: the search for frequent substrings takes time in
            # proportion to the length of what is repeated.
            model = train_unigram(
                _counted(lines, progress),
                vocab_size,
                input_format="tsv",
                required_chars="".join(sorted(needed)),
                normalization_rule_name="identity",
                hard_vocab_limit=False,
            )
        pieces = ModelProto.FromString(model).pieces
        missing = {p.piece: p.score for p in pieces if p.type == _NORMAL and p.piece not in in_base}
        if len(missing) >= number:
            return missing
        if len(pieces) < vocab_size:
            raise UserError(
                f"--new_pieces {number}: the text of {corpus} gives at most {len(missing):,}"
            )
        vocab_size *= 2


def _counted(lines: Lines, progress: Progress) -> Iterator[str]:
    """Yields lines of SentencePiece's input format tsv: a text and how often it is drawn."""
    for language in lines():
        for text, times in language:
            if text:
                yield f"{text}\t{times}"
        progress.advance(1)


def _appended(model: bytes, pieces: dict[str, float]) -> bytes:
    """Returns ``model`` with more pieces behind its own.

    Their log-probabilities are those of the new text alone. Against the old pieces they count as
    if the new text were the share of all text that the new pieces are of all pieces; without
    that, they would break up the words of the old languages. None falls below the least
    probable old piece, to which SentencePiece ties the price of an unknown character: it must
    stay as it is for old text to keep its ids.
    """
    proto = ModelProto.FromString(model)
    share = math.log(len(pieces) / (len(pieces) + len(proto.pieces)))
    lowest = min(piece.score for piece in proto.pieces if piece.type == _NORMAL)
    for piece, score in pieces.items():
        proto.pieces.add(piece=piece, score=max(score + share, lowest), type=_NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.ClearField("self_test_data")  # encodings by the old pieces, checked on loading
    return proto.SerializeToString(deterministic=True)


def _row_map_table(extension: Extension) -> str:
    """Returns the content of ``row_map.tsv``."""
    carried, spelled = extension.rows.carried.tolist(), extension.rows.spelled
    rows = ["id\tpiece\told_ids"]
    for new_id, piece in enumerate(extension.tokenizer.pieces):
        old = [carried[new_id]] if carried[new_id] >= 0 else spelled.get(new_id, ())
        rows.append(f"{new_id}\t{piece}\t{' '.join(map(str, old))}")
    return "\n".join(rows) + "\n"
