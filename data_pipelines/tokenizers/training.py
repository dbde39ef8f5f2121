"""Trains a SentencePiece unigram model on a temperature sample of a corpus."""

import dataclasses
import io
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from data_pipelines.corpus.cleaning import CleaningConfig, TextCleaner, clean_lines
from data_pipelines.corpus.sources import LONGEST_LINE, TextRange, find_sources, text_ranges
from langsamp_jax.data.rates import temperature_rates
from langsamp_jax.data.sampling import Sampler
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_file, write_bytes
from langsamp_jax.io.progress import Progress
from langsamp_jax.text.tokenizer import SentencePieceTokenizer

_THREADS = 8  # part of the result: the sums of EM depend on how the text is dealt out
_LONGEST_LINE = 16_384  # bytes; SentencePiece would leave out what is longer
_RESERVED = "▅"  # SentencePiece's own mark; it would leave out every line that has one
_UNKNOWN_LETTERS = 0.01  # of the letters of a language-script, above which it is named
_NAMED = 20  # language-scripts

Lines = Callable[[], Iterator[Iterator[tuple[str, int]]]]


def train_tokenizer(
    corpus: Path,
    vocab_size: int,
    output: Path,
    temperature: float = 1 / 0.3,
    max_sentences: int = 1_000_000,
    seed: int = 0,
) -> SentencePieceTokenizer:
    """Trains ``vocab_size`` pieces (the model then has two ids more: ``<pad>`` and ``<mask>``).

    The lines are those of ``LineSample.draw``. The same input gives the same bytes. What was done
    to lines that SentencePiece would leave out, and of which language-scripts letters are unknown
    to the new pieces, is said on standard error.

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
                    yield from trainable_parts(text)
                progress.advance(times)

    say(sample.notes)
    with Progress("tokenizer: reading", sample.size, "sentences") as progress:
        tokenizer = SentencePieceTokenizer(train_unigram(sentences(progress), vocab_size))
    counts = map(character_counts, normalized(sample, tokenizer)())
    say(unknown_letters(dict(zip(sample.names, counts, strict=True)), tokenizer))
    write_bytes(output, tokenizer.model)
    return tokenizer


@dataclasses.dataclass(frozen=True)
class LineSample:
    """Lines of a corpus, drawn by temperature.

    Attributes:
      ranges: the text of each language-script.
      copies: int64 [lines] for each of them, how often each line is drawn.
      notes: what is done to lines that are too long, or hold what SentencePiece keeps for itself.
    """

    ranges: list[list[TextRange]]
    copies: list[np.ndarray]
    notes: list[str]

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
        sources = find_sources(corpus)
        ranges = [text_ranges(*source) for source in sources.items()]
        found = [_count_lines(of_name) for of_name in ranges]
        counts = np.array([of_name["lines"] for of_name in found])
        if not counts.any():
            raise UserError(f"{corpus} holds no text: every file is empty")
        sampler = Sampler.create(counts, temperature_rates(counts, temperature), seed)
        language, line = sampler.span(0, min(max_sentences, int(counts.sum())))
        copies = [
            np.bincount(line[language == index], minlength=count)
            for index, count in enumerate(counts)
        ]
        return LineSample(ranges, copies, _notes(dict(zip(sources, found, strict=True))))

    @property
    def size(self) -> int:
        """Returns how many lines are drawn; a line counts as often as it is drawn."""
        return int(sum(copies.sum() for copies in self.copies))

    @property
    def names(self) -> list[str]:
        return [of_name[0].name for of_name in self.ranges]

    def languages(self) -> Iterator[Iterator[tuple[str, int]]]:
        """Yields for each language-script its drawn lines, and how often each is drawn."""
        for ranges, copies in zip(self.ranges, self.copies, strict=True):
            lines = zip(_lines(ranges), copies.tolist(), strict=True)
            yield ((text, times) for text, times in lines if times)


def _lines(ranges: list[TextRange], counts: Counter[str] | None = None) -> Iterator[str]:
    """Yields the clean lines of a language-script, repeated ones too.

    Args:
      counts: gets what the cleaner counted.
    """
    for text in ranges:
        cleaner = TextCleaner(text.name, CleaningConfig())
        for lines in clean_lines(cleaner, text):
            yield from lines
        if counts is not None:
            counts.update(cleaner.counts)


def _count_lines(ranges: list[TextRange]) -> Counter[str]:
    """Counts the clean lines of a language-script (``lines``), those of them that are ``long`` or
    hold what is ``reserved``, and those that are ``overlong``, which the reader leaves out."""
    counts, cleaned = Counter(), Counter()
    for line in _lines(ranges, cleaned):
        counts["lines"] += 1
        counts["reserved"] += _RESERVED in line
        counts["long"] += _is_long(line)
    counts["overlong"] = cleaned["overlong"]
    return counts


def _notes(counts: dict[str, Counter[str]]) -> list[str]:
    """Returns a line for everything that does not reach SentencePiece as it stands in the text."""
    treated = {
        "reserved": f"hold {_RESERVED}, SentencePiece's own mark: trained on with a space for it",
        "long": f"are longer than {_LONGEST_LINE:,} bytes: trained on in parts",
        "overlong": f"are longer than {LONGEST_LINE:,} bytes: left out",
    }
    return [
        f"{name}: {count:,} of {of_name['lines'] + of_name['overlong']:,} lines {what}"
        for name, of_name in counts.items()
        for kind, what in treated.items()
        if (count := of_name[kind])
    ]


def _is_long(line: str) -> bool:
    return len(line) > _LONGEST_LINE // 4 and len(line.encode()) > _LONGEST_LINE


def say(notes: Iterable[str]) -> None:
    """Prints lines on standard error."""
    for note in notes:
        print(note, file=sys.stderr, flush=True)


def trainable_parts(line: str) -> Iterator[str]:
    """Yields a line as SentencePiece's trainer takes it: without its own mark, and cut at spaces,
    or between characters, where it is too long."""
    line = line.replace(_RESERVED, " ").strip()
    while _is_long(line):
        part = line.encode()[:_LONGEST_LINE].decode(errors="ignore")
        part = part.rsplit(None, 1)[0]
        yield part
        line = line[len(part) :].lstrip()
    if line:
        yield line


def normalized(sample: LineSample, tokenizer: SentencePieceTokenizer) -> Lines:
    """Returns the drawn lines as ``tokenizer`` sees them, in parts that can be trained on."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)

    def parts(lines: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        for text, times in lines:
            text = " ".join(processor.normalize(text).replace("▁", " ").split())
            yield from ((part, times) for part in trainable_parts(text))

    return lambda: map(parts, sample.languages())


def character_counts(lines: Iterable[tuple[str, int]]) -> Counter[str]:
    """Counts the characters of the lines of one language-script."""
    counts = Counter()
    for text, times in lines:
        for character, number in Counter(text).items():
            counts[character] += number * times
    return counts


def unknown_letters(
    counts: dict[str, Counter[str]], tokenizer: SentencePieceTokenizer
) -> list[str]:
    """Returns lines that say of which language-scripts letters, or marks on them, are unknown.

    Args:
      counts: the characters of each language-script, as the tokenizer has normalised them.
    """
    known, shares = set(tokenizer.pieces), {}
    for name, of_name in counts.items():
        letters = {c: n for c, n in of_name.items() if unicodedata.category(c)[0] in "LM"}
        lacking = {c: n for c, n in letters.items() if c not in known}
        shares[name] = sum(lacking.values()) / max(1, sum(letters.values())), lacking
    named = [name for name in counts if shares[name][0] > _UNKNOWN_LETTERS]
    named.sort(key=lambda name: -shares[name][0])
    if not named:
        known_share = 1 - max(share for share, _ in shares.values())
        return [f"of every language-script at least {known_share:.2%} of the letters are known"]
    notes = [
        f"{name}: {shares[name][0]:.1%} of its letters are unknown to the tokenizer "
        f"({' '.join(sorted(shares[name][1], key=shares[name][1].get, reverse=True)[:5])})"
        for name in named[:_NAMED]
    ]
    return notes + [f"and {len(named) - _NAMED} more language-scripts"] * (len(named) > _NAMED)


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
