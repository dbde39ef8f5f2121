"""What `langsamp tokenizer extend` gives new languages, and what it costs old ones.

    python benchmarks/vocabulary_extension.py tokens --data DATA --folder WORK --output FILE
    python benchmarks/vocabulary_extension.py loss --data DATA --folder WORK --output FILE

DATA holds XLM-R's tokenizer, the text of ``udhr``, ``bible`` and ``flores_sib200``, and
``langsamp/task_languages.json``. Writes FILE.json and FILE.md; what is made on the way stays in
WORK and is not made again.

``tokens`` extends XLM-R's vocabulary on UDHR and the Bible and counts, per script, the unknown
tokens and the tokens per word before and after; the lines of FLORES, which it was not trained
on, whose ids change; and the lines on which SentencePiece, our ids and transformers disagree,
with the causes that ``tokenizer_parity.py`` tells apart.

``loss`` trains a small model on the Bible in XLM-R's languages with their own vocabulary, extends
both to the other languages, and compares the masked-LM loss of new rows that begin as means with
that of random ones: right after the extension, and after a few steps.
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tabulate import tabulate
from tokenizer_parity import Cause, our_ids
from transformers import AutoTokenizer

from langsamp_jax.languages.aligned_text import aligned_lines
from langsamp_jax.text.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer

LINES_AT_ONCE = 2000
SMALL = {"old": 8000, "new": 4000, "length": 128, "steps": 600, "continued": 100}
LARGE = ("Hans", "Hant", "Jpan", "Hang")  # their characters alone would fill a small vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("tokens", "loss"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for what is made on the way")
    parser.add_argument("--output", type=Path, required=True, help="without .json and .md")
    parser.add_argument("--new_pieces", type=int, default=20_000, help="of part tokens")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part == "tokens":
        log, text = tokens(args.data, args.folder, args.new_pieces)
    else:
        log, text = loss(args.data, args.folder)
    args.output.with_suffix(".json").write_text(json.dumps(log, indent=1) + "\n", "utf-8")
    args.output.with_suffix(".md").write_text(text, "utf-8")
    print(text)


def tokens(data: Path, folder: Path, new_pieces: int) -> tuple[dict[str, Any], str]:
    corpus, extended = folder / "corpus", folder / "extended"
    join_texts([data / "udhr" / "text", data / "bible" / "text"], corpus)
    base = data / "tokenizers" / "xlmr" / "sentencepiece.bpe.model"
    options = {"base": base, "corpus": corpus, "new_pieces": new_pieces, "output": extended}
    made(extended, "tokenizer", "extend", **options)
    old, new = load_tokenizer(base), load_tokenizer(extended / "tokenizer.model")
    agreement = Agreement(extended)
    raw = raw_scores(new.model, new_pieces)
    scripts, flores, unscaled = defaultdict(Counts), defaultdict(Counts), defaultdict(Counts)
    for file, lines in batches(corpus):
        scripts[file.stem.split("_")[1]].add(lines, old, new, agreement)
    kind = flores_kinds(data)
    for file, lines in batches(data / "flores_sib200" / "text"):
        if file.stem in kind:
            flores[kind[file.stem]].add(lines, old, new, agreement)
            unscaled[kind[file.stem]].add(lines, old, raw)
    log = {
        "new_pieces": new_pieces,
        "scripts": {name: counts.record() for name, counts in sorted(scripts.items())},
        "flores": {name: counts.record() for name, counts in sorted(flores.items())},
        "flores_raw_scores": {name: c.record() for name, c in sorted(unscaled.items())},
        "agreement": agreement.record(),
    }
    headers = ["", "lines", "unknown before", "after", "tokens a word before", "after"]
    headers += ["tokens a character before", "after", "lines with other ids"]
    sections = [
        f"XLM-R's vocabulary extended by {new_pieces:,} pieces on UDHR and the Bible.\n",
        "That text, by script:\n",
        markdown(headers, [row(n, c) for n, c in log["scripts"].items()]),
        "\nFLORES, on which nothing was trained:\n",
        markdown(headers, [row(n, c) for n, c in log["flores"].items()]),
        "\nFLORES if the new pieces had their log-probabilities in the new text alone:\n",
        markdown(headers, [row(n, c) for n, c in log["flores_raw_scores"].items()]),
        "\nLines with other ids than SentencePiece and the row order give:\n",
        markdown(list(log["agreement"]), [[f"{n:,}" for n in log["agreement"].values()]]),
    ]
    return log, "\n".join(sections) + "\n"


def raw_scores(model: bytes, new_pieces: int) -> SentencePieceTokenizer:
    """The extended model with what the extension takes off the new pieces' scores given back."""
    proto = ModelProto.FromString(model)
    for piece in proto.pieces[-new_pieces:]:
        piece.score -= math.log(new_pieces / len(proto.pieces))
    return SentencePieceTokenizer(proto.SerializeToString())


class Counts:
    """Sums over lines, before and after the extension."""

    def __init__(self) -> None:
        self.lines = self.words = self.characters = self.changed = 0
        self.tokens, self.unknown = np.zeros(2, int), np.zeros(2, int)

    def add(
        self,
        lines: list[str],
        old: Tokenizer,
        new: Tokenizer,
        agreement: "Agreement | None" = None,
    ) -> None:
        before, after = our_ids(old, lines), our_ids(new, lines)
        if agreement:
            agreement.add(lines, after)
        self.lines += len(lines)
        self.words += sum(len(line.split()) for line in lines)
        self.characters += sum(len("".join(line.split())) for line in lines)
        self.changed += sum(map(list.__ne__, before, after))
        for i, ids in enumerate((before, after)):
            self.tokens[i] += sum(len(line) - 2 for line in ids)
            self.unknown[i] += sum(line.count(old.vocabulary.unk_id) for line in ids)

    def record(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "unknown": (self.unknown / self.tokens).tolist(),
            "tokens_per_word": (self.tokens / self.words).tolist(),
            "tokens_per_character": (self.tokens / self.characters).tolist(),
            "lines_changed": self.changed / self.lines,
        }


class Agreement:
    """Compares our ids with SentencePiece's and with those of the folder for transformers."""

    def __init__(self, extended: Path):
        file = str(extended / "tokenizer.model")
        self._processor = sentencepiece.SentencePieceProcessor(model_file=file)
        self._transformers = AutoTokenizer.from_pretrained(extended / "huggingface")
        self._cause = Cause(self._processor)
        self._counts = dict.fromkeys(
            ("lines", "sentencepiece", "rounding", "normaliser", "unexplained"), 0
        )

    def add(self, lines: list[str], ours: list[list[int]]) -> None:
        self._counts["lines"] += len(lines)
        plain = [[0, *(i + 1 if i else 3 for i in ids), 2] for ids in self._processor.encode(lines)]
        self._counts["sentencepiece"] += sum(map(list.__ne__, ours, plain))
        theirs = self._transformers(lines)["input_ids"]
        for i in np.flatnonzero(list(map(list.__ne__, ours, theirs))):
            cause, _ = self._cause(lines[i], self._transformers)
            self._counts[cause] += 1

    def record(self) -> dict[str, int]:
        names = {
            "sentencepiece": "SentencePiece",
            "rounding": "transformers: rounding",
            "normaliser": "transformers: normaliser",
            "unexplained": "transformers: unexplained",
        }
        return {names.get(name, name): count for name, count in self._counts.items()}


def loss(data: Path, folder: Path) -> tuple[dict[str, Any], str]:
    head = {name for kinds in task_languages(data).values() for name in kinds["head"]}
    bible = data / "bible" / "text"
    names = [file.stem for file in sorted(bible.glob("*.txt")) if not file.stem.endswith(LARGE)]
    old_names = [name for name in names if name in head]
    copy(bible, folder / "old_text", old_names)
    copy(bible, folder / "all_text", names)
    made(
        folder / "old.model",
        "tokenizer",
        "train",
        corpus=folder / "old_text",
        vocab_size=SMALL["old"],
        output=folder / "old.model",
    )
    made(
        folder / "small_extended",
        "tokenizer",
        "extend",
        base=folder / "old.model",
        corpus=folder / "all_text",
        new_pieces=SMALL["new"],
        output=folder / "small_extended",
    )
    new_model = folder / "small_extended" / "tokenizer.model"
    prepare(folder / "old_text", folder / "old.model", folder / "old_store")
    prepare(folder / "all_text", new_model, folder / "new_store")
    train(folder / "old_store", folder / "old_run", SMALL["steps"])
    hub = folder / "old_huggingface"
    made(hub, "export", "--full", run=folder / "old_run", output=hub)
    log: dict[str, Any] = {"settings": SMALL, "old_languages": old_names, "loss": []}
    for steps, when in ((1, "right after"), (SMALL["continued"], f"{SMALL['continued']} steps on")):
        for init in ("mean", "normal"):
            run, result = folder / f"{init}_{steps}", folder / f"{init}_{steps}.json"
            start = [f"--gin.init.new_pieces={init}", "--init_from", str(hub)]
            train(folder / "new_store", run, steps, *start)
            made(result, "evaluate", "mlm", model=run, data=folder / "new_store", output=result)
            found = by_kind(json.loads(result.read_bytes()), set(old_names))
            log["loss"].append({"when": when, "new_rows": init, **found})
    rows = [
        [entry["when"], entry["new_rows"], f"{entry['old']:.3f}", f"{entry['new']:.3f}"]
        for entry in log["loss"]
    ]
    text = (
        f"A model trained for {SMALL['steps']:,} steps with {SMALL['old']:,} pieces on the Bible "
        f"in {len(old_names)} languages, extended by {SMALL['new']:,} pieces to "
        f"{len(names)}: masked-LM loss (nats a token) on held-out verses.\n\n"
    )
    headers = ["after the extension", "new rows", "old languages", "new languages"]
    return log, text + markdown(headers, rows) + "\n"


def by_kind(results: Mapping[str, Any], old: set[str]) -> dict[str, float]:
    """The loss over all targets of the old and of the new languages."""
    sums = {"old": np.zeros(2), "new": np.zeros(2)}
    for record in results["languages"]:
        if record["targets"]:
            kind = "old" if record["language"] in old else "new"
            sums[kind] += record["targets"] * np.array([record["loss"], 1])
    return {kind: float(total / targets) for kind, (total, targets) in sums.items()}


def prepare(corpus: Path, tokenizer: Path, store: Path) -> None:
    options = {"corpus": corpus, "tokenizer": tokenizer, "output": store}
    made(store, "prepare", sequence_length=SMALL["length"], validation_fraction=0.05, **options)


def train(store: Path, run: Path, steps: int, *start: str) -> None:
    settings = {"num_steps": steps, "eval_every": steps, "checkpoint_every": steps}
    gin = [f"--gin.train.{name}={value}" for name, value in settings.items()]
    made(run, "train", *gin, *start, gin_file="small_text.gin", data=store, output=run)


def made(output: Path, /, *command: str, **options: object) -> None:
    """Runs a `langsamp` command unless its output is there."""
    if not output.exists():
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run([sys.executable, "-m", "langsamp_jax", *command, *arguments], check=True)


def join_texts(folders: Sequence[Path], corpus: Path) -> None:
    """One file a language-script, the lines of all folders one after the other."""
    corpus.mkdir(exist_ok=True)
    for name in sorted({file.name for folder in folders for file in folder.glob("*.txt")}):
        lines = [
            line
            for folder in folders
            if (folder / name).exists()
            for line in aligned_lines(folder / name)
        ]
        (corpus / name).write_text("\n".join(filter(None, lines)) + "\n", "utf-8")


def copy(texts: Path, corpus: Path, names: Sequence[str]) -> None:
    corpus.mkdir(exist_ok=True)
    for name in names:
        (corpus / f"{name}.txt").write_bytes((texts / f"{name}.txt").read_bytes())


def batches(corpus: Path) -> Iterator[tuple[Path, list[str]]]:
    for file in sorted(corpus.glob("*.txt")):
        lines = [line for line in aligned_lines(file) if line]
        for start in range(0, len(lines), LINES_AT_ONCE):
            yield file, lines[start : start + LINES_AT_ONCE]


def task_languages(data: Path) -> dict[str, dict[str, list[str]]]:
    tasks = json.loads((data / "langsamp" / "task_languages.json").read_bytes())
    return {task: kinds for task, kinds in tasks.items() if isinstance(kinds, dict)}


def flores_kinds(data: Path) -> dict[str, str]:
    kinds = task_languages(data)["sib200"]
    titles = {"head": "languages of XLM-R", "tail": "other languages"}
    return {name: title for kind, title in titles.items() for name in kinds[kind]}


def row(name: str, record: Mapping[str, Any]) -> list[str]:
    pairs = [f"{value:.2%}" for value in record["unknown"]]
    for key in ("tokens_per_word", "tokens_per_character"):
        pairs += [f"{value:.2f}" for value in record[key]]
    return [name, f"{record['lines']:,}", *pairs, f"{record['lines_changed']:.1%}"]


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, "github", disable_numparse=True, colalign=align)


if __name__ == "__main__":
    main()
