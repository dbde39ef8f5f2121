"""Sentence classification: Taxi1500 and SIB-200, as they are distributed or as aligned text.

As distributed, a set is a file of a language and split, with one sentence a line. Aligned, it is
a folder of ``iso639-3_Script.txt`` files whose lines translate each other, and one table that
says the split and the label of each line.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.datasets.layout import SPLITS, TaskData, read_tests, source_files
from langsamp_jax.io.files import visible
from langsamp_jax.io.text_lines import read_lines
from langsamp_jax.languages.aligned_text import aligned_corpus
from langsamp_jax.languages.inventory import is_language_script
from langsamp_jax.languages.published import LABELS

_LABEL_NAMES = ("label", "category")
_TEXT_NAMES = ("text", "verse")


@dataclasses.dataclass(frozen=True)
class ClassificationSet:
    """Sentences and the ids of their labels, int32 [n].

    ``missing`` counts those that a language of aligned text lacks; they are in neither list.
    """

    texts: list[str]
    labels: np.ndarray
    missing: int = 0

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def read_sentence_task(
    folder: Path, task: str, source: str = "eng_Latn"
) -> TaskData[ClassificationSet]:
    """Reads the data of ``taxi1500`` or ``sib200``.

    Args:
      folder: one of these, whichever the task:

        - a folder for each language with ``train.tsv``, ``dev.tsv`` and ``test.tsv``, or files
          ``LANGUAGE_SPLIT.tsv`` (``eng_train.tsv``, ``deu_Latn_test.tsv``). Their columns are id,
          label and sentence; where a first line names them (``label`` or ``category``, ``text``
          or ``verse``), they may stand in any order. A field may be quoted as in CSV.
        - aligned text in the folder or in its ``text``, and beside either a ``.tsv`` with the
          columns ``line``, ``split`` and ``label`` or ``category``.

    Raises:
      UserError: the source has no train or dev set, or a file of it cannot be read (the line is
        named): not UTF-8, empty, another number of columns, an unknown label.
    """
    folder = Path(folder)
    text = folder / "text" if (folder / "text").is_dir() else folder
    if text.is_dir() and any(is_language_script(file.stem) for file in visible(text, ".txt")):
        return _read_aligned(text, task, source)
    name, train, dev = source_files(folder, source)
    test, skipped = read_tests(folder, name, task, lambda files: _read_sets(files, task))
    return TaskData(LABELS[task], _read_sets(train, task), _read_sets(dev, task), test, skipped)


def _read_sets(files: Sequence[Path], task: str) -> ClassificationSet:
    """Reads the sentences of files as they are distributed, one after the other."""
    texts, labels, missing = [], [], 0
    for file in files:
        rows = _table(file)
        names = rows[0][1]
        label_column, text_column = _column(names, _LABEL_NAMES), _column(names, _TEXT_NAMES)
        if label_column is not None and text_column is not None:
            rows = rows[1:]
        elif len(names) == 3:
            label_column, text_column = 1, 2
        else:
            raise UserError(
                f"{file}, line 1: {len(names)} columns; expected id, label and sentence, or names "
                "of columns"
            )
        for where, cells in rows:
            label = _label_id(cells[label_column], task, where)
            if cells[text_column].strip():
                texts.append(cells[text_column].strip())
                labels.append(label)
            else:
                missing += 1
    if not texts:
        raise UserError(f"{files[0]} holds no sentence")
    return ClassificationSet(texts, np.array(labels, np.int32), missing)


def _read_aligned(text: Path, task: str, source: str) -> TaskData[ClassificationSet]:
    table, header = _labels_file(text)
    line_column, split_column = header.index("line"), header.index("split")
    label_column = _column(header, _LABEL_NAMES)
    lines, skipped = aligned_corpus(text, source)
    chosen: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for where, cells in _table(table)[1:]:
        line, split = cells[line_column], cells[split_column]
        if not (line.isdecimal() and 1 <= int(line) <= len(lines[source])):
            raise UserError(
                f"{where}: line {line!r}; {text / source}.txt has lines 1 to {len(lines[source])}"
            )
        if split not in SPLITS:
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        chosen[split].append((int(line) - 1, _label_id(cells[label_column], task, where)))

    def read(name: str, split: str) -> ClassificationSet:
        labelled = [(lines[name][i], label) for i, label in chosen[split] if lines[name][i]]
        if not labelled:
            raise UserError(
                f"{text / name}.txt has none of the {len(chosen[split])} sentences of {split}"
            )
        texts, labels = zip(*labelled, strict=True)
        return ClassificationSet(
            list(texts), np.array(labels, np.int32), len(chosen[split]) - len(labelled)
        )

    test = {}
    for name in lines:
        try:
            test[name] = read(name, "test")
        except UserError as error:
            skipped[name] = str(error)
    return TaskData(LABELS[task], read(source, "train"), read(source, "dev"), test, skipped)


def _labels_file(text: Path) -> tuple[Path, list[str]]:
    """Finds the one table that labels the lines, in the text's folder or beside it; its header."""
    places = [text, text.parent] if text.name == "text" else [text]
    tables = []
    for file in (file for place in places for file in visible(place, ".tsv")):
        header = next(iter(read_lines(file)), "").split("\t")
        if {"line", "split"} <= set(header) and _column(header, _LABEL_NAMES) is not None:
            tables.append((file, header))
    if len(tables) == 1:
        return tables[0]
    where = " and ".join(str(place) for place in places)
    problem = (
        f"several files, {' and '.join(str(file) for file, _ in tables)}" if tables else "no file"
    )
    raise UserError(
        f"{problem} with the labels of the lines: expected one .tsv in {where} whose first line "
        "names the columns line, split and label (or category)"
    )


def _table(file: Path) -> list[tuple[str, list[str]]]:
    """Reads the rows of a tab-separated file that are not empty, each with ``FILE, line N``.

    A cell in quotes is what CSV means by it, as SIB-200 has them; a quote elsewhere is itself.
    """
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if rows and len(cells) != len(rows[0][1]):
            expected = len(rows[0][1])
            raise UserError(f"{file}, line {number}: {len(cells)} columns; expected {expected}")
        rows.append((f"{file}, line {number}", [_unquoted(cell) for cell in cells]))
    if not rows:
        raise UserError(f"{file} is empty")
    return rows


def _unquoted(cell: str) -> str:
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((column for column, name in enumerate(names) if name in wanted), None)


def _label_id(label: str, task: str, where: str) -> int:
    if label not in LABELS[task]:
        raise UserError(f"{where}: {label!r} is no label of {task} ({', '.join(LABELS[task])})")
    return LABELS[task].index(label)
