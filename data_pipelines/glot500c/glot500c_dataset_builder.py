"""The TFDS builder of Glot500-c: the texts of a language-script, in the order of its files."""

import codecs
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.corpus import arrow
from data_pipelines.corpus.sources import SUFFIXES, open_text, source_files
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import Inventory

# TFDS sorts by key what does not fit into memory, in 1,000 files by the key's share of 2^128, each
# of which must fit. A key that counts the bytes of text gives each file 69 MB.
_BYTES_BITS, _NUMBER_BITS = 36, 92


class Builder(tfds.core.GeneratorBasedBuilder):
    """Examples are ``{"text": string}``. Texts that are missing, and empty lines of text files,
    give no example; text is otherwise as it stands.

    Raises:
      UserError: the language-script has no text in ``manual_dir`` (what has is named) or two
        sources, or a file is damaged.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name) for name in Inventory.published().language_scripts
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Fetch Glot500-c (https://github.com/cisnlp/Glot500 says where it is) and give the folder or
        bucket that it lies in as manual_dir. A language-script is a folder deu_Latn that Hugging
        Face datasets saved (a Dataset, or a DatasetDict with the split train) or that holds .txt
        or .txt.gz files, or it is a file deu_Latn.txt or deu_Latn.txt.gz, of one text a line.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text in more than 500 languages, collected to train Glot500.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://github.com/cisnlp/Glot500",
            citation="ImaniGooghari et al.: Glot500: Scaling Multilingual Corpora and Language "
            "Models to 500 Languages. ACL 2023. https://arxiv.org/abs/2305.12182",
            disable_shuffling=True,  # sentences that follow each other share rows of tokens
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        files = _source_files(dl_manager.manual_dir, self.builder_config.name)
        return {"train": self._generate_examples(files)}

    def _generate_examples(self, files: list[epath.Path]) -> Iterator[tuple[int, dict[str, bytes]]]:
        number = size = 0
        for file in files:
            for text in arrow.texts(file) if file.suffix == ".arrow" else _lines(file):
                yield min(size, 2**_BYTES_BITS - 1) << _NUMBER_BITS | number, {"text": text}
                number, size = number + 1, size + len(text)


def _source_files(root: epath.Path, name: str) -> list[epath.Path]:
    """Lists the files of a language-script in the order of its text."""
    places = (root / name, *(root / f"{name}{suffix}" for suffix in SUFFIXES))
    files_at = {place: source_files(place) for place in places if place.exists()}
    sources = [place for place, files in files_at.items() if files]
    if not sources:
        raise UserError(f"{root} has no text of {name}; it has {_others(root, name)}")
    if len(sources) > 1:
        raise UserError(
            f"{name} has two sources, {sources[0]} and {sources[1]}; join them or move one away"
        )
    return files_at[sources[0]]


def _others(root: epath.Path, name: str) -> str:
    """Names the other language-scripts that have text, for a message."""
    configs = {config.name for config in Builder.BUILDER_CONFIGS} - {name}
    names = sorted(configs & {place.name.split(".")[0] for place in root.iterdir()}) or ["none"]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _lines(file: epath.Path) -> Iterator[bytes]:
    """Yields the lines of a text file that are not empty, without line end and byte order mark."""
    with open_text(file) as stream:
        try:
            for number, line in enumerate(stream, 1):
                text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n")
                text.decode("utf-8")
                if text:
                    yield text
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); "
                "convert the file"
            ) from None
