"""How fast ``langsamp prepare`` is beside Hugging Face ``datasets``, and how much memory it takes.

    python benchmarks/prepare.py throughput --corpus TEXT... --tokenizer sentencepiece.bpe.model
    python benchmarks/prepare.py memory --corpus TEXT... --tokenizer ... --megabytes 5000

TEXT are folders of ``iso639-3_Script.txt`` files. Their text is joined by language-script and
repeated, each time with a number before every line, so that no line is there twice for it.

``throughput`` prints one JSON object. From text to packed rows, on all cores, the same text, in
turns: ``prepare``, and ``datasets``: ``load_dataset("text")``, ``map`` with the fast tokenizer,
``map`` with the grouping of transformers' ``run_mlm.py``, which the reference uses. Of ``prepare``
the whole process is timed, imports included; of ``datasets`` these three calls alone. Its cache is
an empty folder each time. ``cpu_seconds`` are those of the whole process in both cases.

``memory`` samples a run of ``prepare`` every second: the processes' proportional share of memory
(PSS: pages that n processes share count 1/n in each), summed, as OUTPUT.csv and OUTPUT.png.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measure", choices=("throughput", "memory"))
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, metavar="TEXT")
    parser.add_argument("--tokenizer", type=Path, required=True, help="XLM-R's SentencePiece model")
    parser.add_argument("--megabytes", type=int, default=280, help="about how much text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where files are made (default: a new folder)")
    parser.add_argument("--output", type=Path, default="benchmarks/results/prepare_memory")
    parser.add_argument("--datasets", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.datasets:
        print(json.dumps(with_datasets(args.datasets, args.tokenizer)))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        measured = measure_memory if args.measure == "memory" else measure_throughput
        result = measured(args, Path(work))
    packages = ("numpy", "sentencepiece", "tensorstore", "datasets", "tokenizers")
    result["machine"] = {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
    print(json.dumps(result, indent=1))


def measure_throughput(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    once, corpus = work / "once", work / "corpus"
    make_corpus(args.corpus, 1, once)
    repetitions = max(1, round(args.megabytes * 1e6 / size(once)))
    make_corpus(args.corpus, repetitions, corpus)
    rounds = []
    for _ in range(args.rounds):
        rounds.append(
            {
                "prepare": with_prepare(corpus, args.tokenizer, work / "store"),
                "datasets": in_a_process_of_its_own(corpus, args.tokenizer),
            }
        )
        print(rounds[-1], file=sys.stderr)
    speeds = {
        name: statistics.median(turn[name]["tokens"] / turn[name]["seconds"] for turn in rounds)
        for name in rounds[0]
    }
    return {
        "text": {
            "bytes": size(corpus),
            "repetitions": repetitions,
            "language_scripts": len(list(corpus.iterdir())),
        },
        "sequence_length": LENGTH,
        "tokens_per_second": {name: round(speed) for name, speed in speeds.items()},
        "times_datasets": round(speeds["prepare"] / speeds["datasets"], 2),
        "rounds": rounds,
    }


def measure_memory(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    once, corpus = work / "once", work / "corpus"
    make_corpus(args.corpus, 1, once)
    make_corpus(args.corpus, max(1, round(args.megabytes * 1e6 / size(once))), corpus)
    run = subprocess.Popen(
        prepare_command(corpus, args.tokenizer, work / "store"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    curve = list(sampled(run))
    if run.returncode:
        sys.exit(run.returncode)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(curve[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(curve)
    draw(curve, size(corpus), args.output.with_suffix(".png"))
    tenth = -(-len(curve) // 10)
    return {
        "bytes": size(corpus),
        "language_scripts": len(list(corpus.iterdir())),
        "seconds": curve[-1]["seconds"],
        "tokens": store_tokens(work / "store"),
        "peak_pss_mb": max(sample["pss_mb"] for sample in curve),
        "peak_rss_mb": max(sample["rss_mb"] for sample in curve),
        "peak_pss_mb_by_tenth": [
            max(sample["pss_mb"] for sample in curve[start : start + tenth])
            for start in range(0, len(curve), tenth)
        ],
    }


def make_corpus(folders: list[Path], repetitions: int, output: Path) -> None:
    """Writes the text of all folders, by language-script, ``repetitions`` times."""
    output.mkdir()
    for source in (file for folder in folders for file in sorted(folder.glob("*_*.txt"))):
        lines = [line for line in source.read_bytes().split(b"\n") if line.strip()]
        with open(output / source.name, "ab") as file:
            for number in range(repetitions):
                file.writelines(b"%d %s\n" % (number, line) for line in lines)


def with_prepare(corpus: Path, tokenizer: Path, store: Path) -> dict[str, float]:
    started, cpu = time.perf_counter(), children_cpu_seconds()
    subprocess.run(
        prepare_command(corpus, tokenizer, store),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds, cpu = time.perf_counter() - started, children_cpu_seconds() - cpu
    tokens = store_tokens(store)
    shutil.rmtree(store)
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "tokens": tokens}


def prepare_command(corpus: Path, tokenizer: Path, store: Path) -> list[str]:
    command = [sys.executable, "-m", "langsamp_jax", "prepare", "--sequence_length", str(LENGTH)]
    return [*command, *map(str, ("--corpus", corpus, "--tokenizer", tokenizer, "--output", store))]


def store_tokens(store: Path) -> int:
    """Tokens of the lines that were kept."""
    from langsamp_jax.data.manifest import SPLITS
    from langsamp_jax.data.store import Store

    manifest = Store(store).manifest
    return sum(int(manifest.column(split, "tokens").sum()) for split in SPLITS)


def in_a_process_of_its_own(corpus: Path, tokenizer: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "throughput", "--corpus", corpus, "--tokenizer", tokenizer]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    cpu = children_cpu_seconds()
    with tempfile.TemporaryDirectory(dir=corpus.parent) as cache:
        done = subprocess.run(
            [*map(str, command), "--datasets", str(corpus)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | offline | {"HF_HOME": cache},
        )
    cpu = children_cpu_seconds() - cpu
    return json.loads(done.stdout.splitlines()[-1]) | {"cpu_seconds": round(cpu, 2)}


def children_cpu_seconds() -> float:
    """Of the processes that have ended, with their own children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_datasets(corpus: Path, tokenizer_file: Path) -> dict[str, float]:
    import pyarrow.compute
    from datasets import disable_caching, load_dataset
    from transformers import XLMRobertaTokenizer

    disable_caching()
    tokenizer = XLMRobertaTokenizer.from_pretrained(tokenizer_file.parent)
    assert tokenizer.is_fast
    tokenizer.model_max_length = sys.maxsize  # lines are grouped, and not warned of
    processes = len(os.sched_getaffinity(0))
    files = sorted(map(str, corpus.glob("*.txt")))

    def tokenize(examples: dict[str, list[str]]) -> dict[str, Any]:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(itertools.chain(*rows)) for key, rows in examples.items()}
        end = len(joined["input_ids"]) // LENGTH * LENGTH
        return {
            key: [ids[start : start + LENGTH] for start in range(0, end, LENGTH)]
            for key, ids in joined.items()
        }

    seconds = [time.perf_counter()]
    text = load_dataset("text", data_files={"train": files}, split="train")
    seconds.append(time.perf_counter())
    tokenized = text.map(tokenize, batched=True, num_proc=processes, remove_columns=["text"])
    seconds.append(time.perf_counter())
    grouped = tokenized.map(group, batched=True, num_proc=processes)
    seconds.append(time.perf_counter())
    lengths = pyarrow.compute.list_value_length(tokenized.data.column("input_ids"))
    return {
        "seconds": round(seconds[-1] - seconds[0], 2),
        "seconds_by_call": [round(b - a, 2) for a, b in itertools.pairwise(seconds)],
        "tokens": pyarrow.compute.sum(lengths).as_py(),
        "rows": len(grouped),
    }


def sampled(run: subprocess.Popen) -> Iterator[dict[str, float]]:
    """The memory of a process and its descendants, once a second until it ends."""
    started = time.perf_counter()
    for second in itertools.count():
        time.sleep(max(0.0, started + second - time.perf_counter()))
        if run.poll() is not None:
            return
        infos = []
        for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
            try:
                infos.append(process.memory_full_info())
            except psutil.Error:  # it has ended
                continue
        yield {
            "seconds": round(time.perf_counter() - started, 1),
            "processes": len(infos),
            "pss_mb": round(sum(info.pss for info in infos) / 1e6, 1),
            "rss_mb": round(sum(info.rss for info in infos) / 1e6, 1),
        }


def draw(curve: list[dict[str, float]], corpus_bytes: int, file: Path) -> None:
    """Draws the memory of all processes over the seconds of a preparation, with a line at 1 GB."""
    import altair

    from langsamp_jax.report.figures import draw as draw_chart

    samples = [
        {"seconds": sample["seconds"], "memory": name, "mb": sample[field]}
        for name, field in (("PSS", "pss_mb"), ("RSS", "rss_mb"))
        for sample in curve
    ]
    lines = altair.Chart(altair.InlineData(values=samples)).mark_line()
    lines = lines.encode(
        x=altair.X("seconds:Q", title="seconds"),
        y=altair.Y("mb:Q", title="MB, all processes"),
        color=altair.Color("memory:N", title=None),
        strokeDash=altair.StrokeDash("memory:N", title=None),
    )
    limit = altair.Chart(altair.InlineData(values=[{"mb": 1000}]))
    limit = limit.mark_rule(style="reference", strokeDash=[6, 3]).encode(y="mb:Q")
    title = f"Memory of langsamp prepare on {corpus_bytes / 1e9:.1f} GB of text"
    chart = altair.layer(lines, limit).properties(title=title, width=640, height=280)
    file.write_bytes(draw_chart(chart.to_dict(), file.suffix[1:]))


def size(corpus: Path) -> int:
    return sum(file.stat().st_size for file in corpus.iterdir())


if __name__ == "__main__":
    main()
