"""Tagged words: named entities (WikiANN, Universal NER) and parts of speech (UD)."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.datasets.layout import TaskData, read_tests, source_files
from langsamp_jax.io.text_lines import read_lines

UPOS = tuple(  # https://universaldependencies.org/u/pos/
    "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
)

# Of the formats whose words are numbered: the columns of word and tag, and the least number.
_NUMBERED = {".conllu": (1, 3, 10), ".iob2": (1, 2, 3)}


@dataclasses.dataclass(frozen=True)
class TaggingSet:
    """The words of sentences and their tags. A word may be one that no tokenizer has a piece of."""

    words: list[list[str]]
    tags: list[list[str]]

    @property
    def text(self) -> str:
        return "\n".join(word for sentence in self.words for word in sentence)


def read_tagging_task(folder: Path, task: str, source: str = "eng_Latn") -> TaskData[TaggingSet]:
    """Reads the data of ``ner`` or ``pos``.

    The labels of ``pos`` are the 17 of Universal Dependencies; those of ``ner`` are O and what
    else the train and dev sets of the source hold. A language with a tag that is none of them is
    skipped.

    Args:
      folder: for each language a folder with ``train``, ``dev`` and ``test``, in itself or in a
        folder for each treebank; treebanks are read one after the other, by name. A file is

        - ``.conllu``: CoNLL-U; the words are the syntactic ones, so that multiword tokens (3-4)
          and empty nodes (5.1) are passed over, and the tag is UPOS;
        - ``.iob2``: Universal NER, with the columns id, word, tag and any others;
        - ``.tsv``, ``.txt`` or without ending: word and tag with a tab between them, or a space,
          and an empty line between sentences. A prefix that all words of a file share
          (``en:``, as WikiANN is distributed) is taken off.

    Raises:
      UserError: the source has no train or dev set, or a file of it cannot be read (the line is
        named): not UTF-8, empty, another number of columns, an unknown tag.
    """
    folder = Path(folder)
    name, train_files, dev_files = source_files(folder, source)
    labels = UPOS if task == "pos" else None
    train, dev = _read_files(train_files, labels), _read_files(dev_files, labels)
    if labels is None:
        tags_seen = {tag for split in (train, dev) for tags in split.tags for tag in tags}
        labels = ("O", *sorted(tags_seen - {"O"}))
    test, skipped = read_tests(folder, name, task, lambda files: _read_files(files, labels))
    return TaskData(labels, train, dev, test, skipped)


def _read_files(files: Sequence[Path], labels: Sequence[str] | None) -> TaggingSet:
    read = [_read_file(file, labels) for file in files]
    return TaggingSet(
        [sentence for tagged in read for sentence in tagged.words],
        [tags for tagged in read for tags in tagged.tags],
    )


def _read_file(file: Path, labels: Sequence[str] | None) -> TaggingSet:
    """Reads the sentences of a file, whose tags are among ``labels``; None: any BIO tags."""
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    numbered = file.suffix in _NUMBERED
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            if words[-1]:
                words.append([])
                tags.append([])
            continue
        if numbered and re.match(r"#|\d+[-.]\d", line):
            continue
        word, tag = _numbered_word(line, file) if numbered else _plain_word(line)
        if not (word and tag):
            expected = "the columns of CoNLL-U" if file.suffix == ".conllu" else "word and tag"
            raise UserError(f"{file}, line {number}: expected {expected}, with tabs between")
        if labels is None and not re.fullmatch(r"O|[BI]-\S+", tag):
            raise UserError(f"{file}, line {number}: {tag!r} is no BIO tag, as O, B-PER, I-PER are")
        if labels is not None and tag not in labels:
            raise UserError(f"{file}, line {number}: {tag!r} is none of {', '.join(labels)}")
        words[-1].append(word)
        tags[-1].append(tag)
    words, tags = [list(filter(None, sentences)) for sentences in (words, tags)]
    if not words:
        raise UserError(f"{file} holds no sentence")
    return TaggingSet(words if numbered else _without_prefix(words), tags)


def _numbered_word(line: str, file: Path) -> tuple[str, str]:
    word, tag, least = _NUMBERED[file.suffix]
    cells = line.split("\t")
    return (cells[word], cells[tag]) if len(cells) >= least and cells[0].isdecimal() else ("", "")


def _plain_word(line: str) -> tuple[str, str]:
    """Returns word and tag, or two empty strings where there are not two columns."""
    cells = line.split("\t") if "\t" in line else line.rsplit(" ", maxsplit=1)
    return (cells[0], cells[1]) if len(cells) == 2 else ("", "")


def _without_prefix(words: list[list[str]]) -> list[list[str]]:
    prefix = re.match(r"[a-z-]+:|", words[0][0])[0]
    if not all(word.startswith(prefix) for sentence in words for word in sentence):
        return words
    return [[word.removeprefix(prefix) for word in sentence] for sentence in words]
