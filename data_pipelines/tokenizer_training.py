"""Trains a SentencePiece unigram model on a temperature sample of a corpus."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from langsamp_jax.corpus import corpus_files, read_lines
from langsamp_jax.errors import UserError
from langsamp_jax.files import require_absent, write_bytes
from langsamp_jax.progress import Progress
from langsamp_jax.sampling import Sampler, temperature_rates
from langsamp_jax.tokenizer import SentencePieceTokenizer

_THREADS = 8  # part of the result: the sums of EM depend on how the text is dealt out
_LONGEST_LINE = 16_384  # bytes; longer ones are no sentences, and SentencePiece leaves them out


def train_tokenizer(
    corpus: Path,
    vocab_size: int,
    output: Path,
    temperature: float = 1 / 0.3,
    max_sentences: int = 1_000_000,
    seed: int = 0,
) -> SentencePieceTokenizer:
    """Trains ``vocab_size`` pieces (the model then has two ids more: ``<pad>`` and ``<mask>``).

    As many lines as the corpus has, at most ``max_sentences``, are drawn by the sampler that
    feeds training: each language in proportion to lines^(1/temperature), every line once before
    any line twice. The same input gives the same bytes.

    Raises:
      UserError: bad input, a vocabulary too small for the characters or too large for the text,
        or an ``output`` that exists.
    """
    output = Path(output)
    require_absent(output)
    if output.is_dir():
        raise UserError(f"{output} is a folder; name the .model file to write")
    if not temperature > 0:
        raise UserError(f"--temperature {temperature}: expected a number above 0")
    for option, value in (("vocab_size", vocab_size), ("sentences", max_sentences)):
        if value < 1:
            raise UserError(f"--{option} {value}: expected a whole number above 0")
    files = corpus_files(corpus)
    counts = np.array([sum(1 for _ in read_lines(file)) for file in files.values()])
    if not counts.any():
        raise UserError(f"{corpus} holds no text: every file is empty")
    sampler = Sampler.create(counts, temperature_rates(counts, temperature), seed)
    language, line = sampler.span(0, min(max_sentences, int(counts.sum())))

    def sample(progress: Progress) -> Iterator[str]:
        for index, file in enumerate(files.values()):
            copies = np.bincount(line[language == index], minlength=counts[index])
            for (_, text), times in zip(read_lines(file), copies, strict=True):
                for _ in range(times):
                    yield text
            progress.advance(int(copies.sum()))

    model = io.BytesIO()
    with Progress("tokenizer: reading", len(line), "sentences") as progress:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sample(progress),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                character_coverage=0.9995,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                num_threads=_THREADS,
                max_sentence_length=_LONGEST_LINE,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(_explain(vocab_size, str(error))) from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, tokenizer.model)
    return tokenizer


def _explain(vocab_size: int, message: str) -> str:
    if limit := re.search(r"value <= (\d+)", message):
        return f"--vocab_size {vocab_size}: the text gives at most {limit.group(1)} pieces"
    if needed := re.search(r"required_chars\D*(\d+) vs (\d+)", message):
        return f"--vocab_size {vocab_size}: its characters alone need {needed.group(2)} pieces"
    return f"SentencePiece could not train: {' '.join(message.split())}"
