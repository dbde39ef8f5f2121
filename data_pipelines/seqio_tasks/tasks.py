"""seqio Tasks and Mixtures of text in many languages.

A Task that this project can use gives examples of one language-script, with the features of
``output_features``. A whole corpus is registered by ``register_corpus``; for a Task of one's own,

    seqio.TaskRegistry.add(
        "my_german",
        source=seqio.TextLineDataSource({"train": "german.txt"}),
        preprocessors=[encode_lines(vocabulary), AddLanguageScript("deu_Latn", features)],
        output_features=features,
    )

with ``features = output_features(vocabulary, ["deu_Latn", "gsw_Latn"])`` for all Tasks of a
Mixture.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.corpus.cleaning import (
    CleaningConfig,
    DamagedText,
    TextCleaner,
    is_validation,
    line_hashes,
)
from data_pipelines.corpus.held_out import read_held_out
from data_pipelines.corpus.sources import find_sources, line_number, read_blocks, text_ranges
from data_pipelines.packing.encoding import combined
from data_pipelines.seqio_tasks.imports import seqio, tf
from data_pipelines.seqio_tasks.vocabulary import CodeVocabulary, TokenizerVocabulary
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import split_language_script

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]

_LINES_AT_ONCE = 1000


def register_corpus(
    name: str,
    corpus: Path,
    tokenizer: Path,
    temperature: float = 1 / 0.3,
    validation_fraction: float = 0.01,
    cleaning: CleaningConfig = CleaningConfig(),  # noqa: B008  frozen
    held_out: Sequence[Path] = (),
) -> seqio.Mixture:
    """Registers a Task for each language-script of a corpus folder, and a Mixture of them all.

    The Tasks are named ``NAME:deu_Latn``. Their examples are the lines that ``langsamp prepare``
    takes from the same corpus with the same settings, in the same order. The rates of the Mixture
    are seqio's ``mixing_rate_num_examples`` at ``temperature``, on the training lines; these are
    counted when a rate is first asked for, which reads the whole corpus.

    Called again with the same arguments, it returns the registered Mixture.

    Raises:
      UserError: bad input (see ``find_sources``, ``load_tokenizer``, ``read_held_out``), or
        another Task or Mixture of one of these names.
    """
    if not (temperature > 0 and 0 <= validation_fraction < 1):
        raise UserError(
            f"corpus {name}: temperature {temperature} must be above 0, and validation_fraction "
            f"{validation_fraction} 0 or more and below 1"
        )
    vocabulary, sources = TokenizerVocabulary(tokenizer), find_sources(corpus)
    features = output_features(vocabulary, sources)
    tasks = {f"{name}:{language_script}": language_script for language_script in sources}
    arguments = (sources, features, temperature, validation_fraction, cleaning, tuple(held_out))
    taken = seqio.MixtureRegistry.names() & {name} or seqio.TaskRegistry.names() & {name, *tasks}
    if taken:
        mixture = seqio.get_mixture_or_task(min(taken))
        if isinstance(mixture, CorpusMixture) and mixture.arguments == arguments:
            return mixture
        raise UserError(f"seqio has another Task or Mixture {min(taken)!r}; choose another name")

    hashes = read_held_out(held_out).hashes if held_out else None
    for task, language_script in tasks.items():
        seqio.TaskRegistry.add(
            task,
            source=CorpusSource(
                language_script, sources[language_script], validation_fraction, cleaning, hashes
            ),
            preprocessors=[
                encode_lines(vocabulary),
                AddLanguageScript(language_script, features),
            ],
            output_features=features,
        )
    rate = functools.partial(seqio.mixing_rate_num_examples, temperature=temperature)
    return seqio.MixtureRegistry.add(
        name, list(tasks), rate, mixture_cls=CorpusMixture, arguments=arguments
    )


class CorpusMixture(seqio.Mixture):
    """A Mixture of ``register_corpus``, with the arguments that it was made of."""

    def __init__(self, *args: object, arguments: tuple[object, ...], **kwargs: object):
        super().__init__(*args, **kwargs)
        self.arguments = arguments


def output_features(
    vocabulary: TokenizerVocabulary, language_scripts: Iterable[str]
) -> dict[str, seqio.Feature]:
    """Returns the features of every Task of a Mixture: ``targets`` int32 [tokens], ``language_ids``
    and ``script_ids`` int32 []. seqio wants all Tasks of a Mixture to have the same."""
    languages, scripts = zip(*map(split_language_script, language_scripts), strict=True)
    return {
        "targets": seqio.Feature(vocabulary, add_eos=False),  # encode_lines has added it
        "language_ids": seqio.Feature(CodeVocabulary(sorted({*languages})), False, rank=0),
        "script_ids": seqio.Feature(CodeVocabulary(sorted({*scripts})), False, rank=0),
    }


def encode_lines(vocabulary: TokenizerVocabulary, key: str = "text") -> Preprocessor:
    """Makes a preprocessor: the text under ``key`` becomes ``targets``, with ``<s>`` and ``</s>``.

    Examples may also be plain texts, as some sources give them. Many lines are encoded at a time,
    which the tokenizer does faster.
    """

    def encode(dataset: tf.data.Dataset) -> tf.data.Dataset:
        if isinstance(dataset.element_spec, Mapping):
            dataset = dataset.map(lambda example: example[key])
        lines = dataset.batch(_LINES_AT_ONCE)
        encoded = lines.map(lambda lines: {"targets": vocabulary.encode_lines_tf(lines)})
        return encoded.unbatch()

    return encode


class AddLanguageScript:
    """A preprocessor: adds ``language_ids`` and ``script_ids`` to every example.

    Raises:
      UserError: a code of ``language_script`` is not among those of ``features``.
    """

    def __init__(self, language_script: str, features: Mapping[str, seqio.Feature]):
        self.language_script = language_script
        codes = split_language_script(language_script)
        self._ids = {
            key: tf.constant(features[key].vocabulary.encode(code)[0], tf.int32)
            for key, code in zip(("language_ids", "script_ids"), codes, strict=True)
        }

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda example: {**example, **self._ids})


class CorpusSource(seqio.DataSource):
    """The clean lines of one language-script: examples ``{"text": string []}``.

    Split and duplicates are decided by the hash of a line, so the text is read once, and 8 bytes
    a line are held for a moment, before the first example comes.
    """

    def __init__(
        self,
        language_script: str,
        files: list[Path],
        validation_fraction: float,
        cleaning: CleaningConfig,
        held_out: np.ndarray | None = None,
    ):
        super().__init__(("train", "validation") if validation_fraction else ("train",))
        self._name, self._files = language_script, files
        self._fraction, self._cleaning, self._held_out = validation_fraction, cleaning, held_out

    def __repr__(self) -> str:
        """Returns all that decides the examples; part of the names in the scratch folder."""
        held_out = None if self._held_out is None else combined([self._held_out.tobytes().hex()])
        return (
            f"CorpusSource({self._name!r}, {self._files!r}, {self._fraction!r}, "
            # The old name of CleaningConfig: what earlier versions left unfinished has it.
            f"Hygiene(normalization={self._cleaning.normalization!r}, "
            f"duplicates={self._cleaning.duplicates!r}), held_out={held_out})"
        )

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [str(file) for file in self._files]

    def num_input_examples(self, split: str) -> int:
        validation, keep = self._sides
        return int(np.count_nonzero(keep & (validation == (split == "validation"))))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: object,
    ) -> tf.data.Dataset:
        """Returns the lines in the order of the files; seqio's Task shuffles them."""
        validation, keep = self._sides
        chosen = keep & (validation == (split == "validation"))

        def lines() -> Iterator[np.ndarray]:
            first = 0
            for block in self._blocks():
                taken = chosen[first : first + len(block)]
                first += len(block)
                chosen_lines = (line for line, take in zip(block, taken, strict=True) if take)
                yield np.array([line.encode() for line in chosen_lines], object)

        dataset = tf.data.Dataset.from_generator(
            lines, output_signature=tf.TensorSpec([None], tf.string)
        )
        examples = dataset.unbatch().map(lambda line: {"text": line})
        if shard_info is None:
            return examples
        return examples.shard(shard_info.num_shards, shard_info.index)

    @functools.cached_property
    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns bool [lines] twice: True for validation, and True for what is no repetition."""
        hashes = [line_hashes(lines) for lines in self._blocks()]
        hashes = np.concatenate([np.zeros(0, np.uint64), *hashes])
        keep = np.ones(len(hashes), bool)
        if self._cleaning.duplicates == "drop":
            keep[:] = False
            keep[np.unique(hashes, return_index=True)[1]] = True
        return is_validation(hashes, self._fraction), keep

    def _blocks(self) -> Iterator[list[str]]:
        """Yields the clean lines, some at a time; raises UserError where one is damaged."""
        cleaner = TextCleaner(self._name, self._cleaning, self._held_out)
        for text in text_ranges(self._name, self._files):
            for block in read_blocks(text):
                try:
                    yield cleaner.clean(block)
                except DamagedText as damage:
                    line = line_number(text.file, damage.position)
                    raise UserError(
                        f"{text.file}, line {line}: not UTF-8 ({damage.reason}); convert the file"
                    ) from None
