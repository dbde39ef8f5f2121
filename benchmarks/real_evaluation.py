"""A small model on real text, from nothing to its report: trained, and evaluated on everything.

    python benchmarks/real_evaluation.py --data shared/data --steps 1200 --output real

Trains on the Universal Declaration of Human Rights and the first 800 of 1,077 Bible verses, and
evaluates on text that is none of it: Tatoeba, FLORES with the labels of SIB-200, Universal
Dependencies, Universal NER. Given again, it goes on: what stands in OUTPUT stays. Prints a table in
Markdown; OUTPUT/log.txt says what was run.
"""

import argparse
import json
from pathlib import Path

import tabulate
from commands import run_missing

TATOEBA, FLORES, UD, UNER = "data/tatoeba", "data/flores_sib200", "data/ud_pos", "data/ner/uner"
VERSES = 800
VOCAB_SIZE = 12000
RATE, EPOCHS, SEEDS = (
    f"--gin.finetune.{name}=" for name in ("learning_rate", "num_epochs", "num_seeds")
)
EVALUATIONS = {  # fine-tuned at rates for a model of this size
    "mlm": "--data store",
    "retrieval-tatoeba": f"--data {TATOEBA}",
    "retrieval-bible": f"--data {FLORES}/text",
    "sib200": f"--data {FLORES} {RATE}5e-4 {EPOCHS}20 {SEEDS}2",
    "pos": f"--data {UD} {RATE}1e-3 {EPOCHS}2",
    # This copy of Universal NER has training sets of three languages; English is none of them.
    "ner": f"--data {UNER} --source dan_Latn {RATE}2e-4 {EPOCHS}6 --gin.finetune.batch_size=8",
    "neutrality": f"--data {FLORES}/text --sentences 200",
    "geometry": "--references data/typology/uriel_subset.npz --families data/languages.tsv",
    "pseudo-perplexity": f"--data {FLORES}/text --sentences 3",
    "donors": f"--data {UD} --on pos --references data/typology/uriel_subset.npz"
    f" --donors mar_Deva tel_Telu uig_Arab wol_Latn {RATE}1e-3 {EPOCHS}2",
}
GROUPS = {"all": "all", "head": "head", "tail": "tail", "latin": "Latin", "non_latin": "not Latin"}
TABLE = [  # task, title, metric, its name, format
    ("retrieval-tatoeba", "SR-T, Tatoeba", "top10", "top-10", ".1%"),
    ("retrieval-bible", "retrieval, FLORES", "top10", "top-10", ".1%"),
    ("sib200", "SIB-200", "macro_f1", "macro-F1", ".1%"),
    ("pos", "POS (UD)", "accuracy", "accuracy", ".1%"),
    ("pos", "POS (UD)", "tag_f1", "F1 of bare tags", ".1%"),
    ("ner", "NER (UNER, from Danish)", "entity_f1", "entity F1", ".1%"),
    (
        "pseudo-perplexity",
        "pseudo-perplexity, FLORES",
        "bits_per_character",
        "bits a character",
        ".2f",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the real text")
    parser.add_argument("--steps", type=int, default=1200, metavar="N")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "data").exists():
        (args.output / "data").symlink_to(args.data.resolve())
    write_corpus(args.output / "data", args.output / "corpus")
    run_missing(commands(args.steps), args.output)
    print(markdown(args.output / "run" / "evaluation"))


def write_corpus(data: Path, corpus: Path) -> None:
    """The text to train on, by language-script."""
    text: dict[str, list[str]] = {}
    for folder, lines in (("udhr", None), ("bible", VERSES)):
        for file in sorted((data / folder / "text").glob("*.txt")):
            found = file.read_text("utf-8").removesuffix("\n").split("\n")
            text.setdefault(file.name, []).extend(found[:lines])
    corpus.mkdir(exist_ok=True)
    for name, lines in text.items():
        (corpus / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")


def commands(steps: int) -> dict[str, str]:
    """What each command leaves -> the command."""
    tokenizer = f"--corpus corpus --vocab_size {VOCAB_SIZE} --output my.model"
    prepare = "--corpus corpus --tokenizer my.model --output store --sequence_length 128"
    prepare += f" --validation_fraction 0.02 --held_out {TATOEBA} {FLORES}/text {UD} {UNER}"
    train = "--gin_file small_text.gin --data store --output run"
    evaluations = {
        f"run/evaluation/{task}.json": f"evaluate {task} --model run {options}"
        for task, options in EVALUATIONS.items()
    }
    return {
        "my.model": f"tokenizer train {tokenizer}",
        "store/manifest.json": f"prepare {prepare}",
        f"run/checkpoints/{steps}": f"train {train} --gin.train.num_steps={steps}"
        " --gin.train.snapshots=powers",
        **evaluations,
        "run/report/index.html": "report --run run",
    }


def markdown(results: Path) -> str:
    """Averages over languages, with their number, and the seconds that a result took."""
    rows = []
    for task, title, metric, name, form in TABLE:
        found = json.loads((results / f"{task}.json").read_bytes())
        cells = []
        for group in GROUPS:
            means = found["averages"].get(group)
            cells.append(f"{means[metric]:{form}} ({means['languages']})" if means else "")
        rows.append([title, name, *cells, f"{found['seconds']:,.0f} s"])
    headers = ["task", "score", *GROUPS.values(), "time"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


if __name__ == "__main__":
    main()
