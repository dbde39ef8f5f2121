"""Trains a SentencePiece unigram model on a temperature sample of a corpus."""

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from data_pipelines.corpus.cleaning import CleaningConfig, TextCleaner, clean_lines
from data_pipelines.corpus.sources import TextRange, find_sources, text_ranges
from langsamp_jax.data.rates import temperature_rates
from langsamp_jax.data.sampling import Sampler
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_file, write_bytes
from langsamp_jax.io.progress import Progress
from langsamp_jax.text.tokenizer import SentencePieceTokenizer

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

    The lines are those of ``LineSample.draw``. The same input gives the same bytes.

    Raises:
      UserError: bad input, a vocabulary too small for the characters or too large for the text,
        or an ``output`` that exists.
    """
    output = Path(output)
    require_file(output)
    if output.exists():
        raise UserError(f"{output} already exists; name another --output or remove it")
    if vocab_size < 1:
        raise UserError(f"--vocab_size {vocab_size}: expected a whole number above 0")
    sample = LineSample.draw(corpus, temperature, max_sentences, seed)

    def sentences(progress: Progress) -> Iterator[str]:
        for lines in sample.languages():
            for text, times in lines:
                for _ in range(times):
                    yield text
                progress.advance(times)

    with Progress("tokenizer: reading", sample.size, "sentences") as progress:
        tokenizer = SentencePieceTokenizer(train_unigram(sentences(progress), vocab_size))
    write_bytes(output, tokenizer.model)
    return tokenizer


@dataclasses.dataclass(frozen=True)
class LineSample:
    """Lines of a corpus, drawn by temperature.

    Attributes:
      ranges: the text of each language-script.
      copies: int64 [lines] for each of them, how often each line is drawn.
    """

    ranges: list[list[TextRange]]
    copies: list[np.ndarray]

    @staticmethod
    def draw(corpus: Path, temperature: float, max_sentences: int, seed: int) -> "LineSample":
        """Draws as many lines as the corpus has, at most ``max_sentences``.

        They are drawn by the sampler that feeds training: each language in proportion to
        lines^(1/temperature), every line once before any line twice.

        Raises:
          UserError: bad input, named as the options of ``langsamp tokenizer`` are.
        """
        if not temperature > 0:
            raise UserError(f"--temperature {temperature}: expected a number above 0")
        if max_sentences < 1:
            raise UserError(f"--sentences {max_sentences}: expected a whole number above 0")
        ranges = [text_ranges(*source) for source in find_sources(corpus).items()]
        counts = np.array([sum(1 for _ in _lines(of_name)) for of_name in ranges])
        if not counts.any():
            raise UserError(f"{corpus} holds no text: every file is empty")
        sampler = Sampler.create(counts, temperature_rates(counts, temperature), seed)
        language, line = sampler.span(0, min(max_sentences, int(counts.sum())))
        copies = [
            np.bincount(line[language == index], minlength=count)
            for index, count in enumerate(counts)
        ]
        return LineSample(ranges, copies)

    @property
    def size(self) -> int:
        """Returns how many lines are drawn; a line counts as often as it is drawn."""
        return int(sum(copies.sum() for copies in self.copies))

    def languages(self) -> Iterator[Iterator[tuple[str, int]]]:
        """Yields for each language-script its drawn lines, and how often each is drawn."""
        for ranges, copies in zip(self.ranges, self.copies, strict=True):
            lines = zip(_lines(ranges), copies.tolist(), strict=True)
            yield ((text, times) for text, times in lines if times)


def _lines(ranges: list[TextRange]) -> Iterator[str]:
    """Yields the clean lines of a language-script, repeated ones too."""
    for text in ranges:
        for lines in clean_lines(TextCleaner(text.name, CleaningConfig()), text):
            yield from lines


def train_unigram(sentences: Iterable[str], vocab_size: int, **options: object) -> bytes:
    """Trains a SentencePiece unigram model of ``vocab_size`` pieces; returns the bytes of its file.

    Args:
      options: further options of SentencePiece's trainer.

    Raises:
      UserError: a vocabulary too small for the characters or too large for the text.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
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
            **options,
        )
    except RuntimeError as error:
        raise UserError(_explain(vocab_size, str(error))) from error
    return model.getvalue()


def _explain(vocab_size: int, message: str) -> str:
    """Returns what an error of SentencePiece means for ``--vocab_size``."""
    if limit := re.search(r"value <= (\d+)", message):
        return f"--vocab_size {vocab_size}: the text gives at most {limit.group(1)} pieces"
    if needed := re.search(r"required_chars\D*(\d+) vs (\d+)", message):
        return f"--vocab_size {vocab_size}: its characters alone need {needed.group(2)} pieces"
    return f"SentencePiece could not train: {' '.join(message.split())}"
