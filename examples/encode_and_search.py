"""Finds for each sentence of one language the nearest of another, and counts the translations.

    python examples/encode_and_search.py output/run aligned/ --queries eng_Latn --pool deu_Latn

The model is a run or a Hugging Face folder. ``aligned/`` holds a file for each language,
``deu_Latn.txt``, whose line i says the same in all of them; an empty line is a missing one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import langsamp_jax
from langsamp_jax.errors import UserError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a run or a Hugging Face folder")
    parser.add_argument("text", type=Path, help="folder of aligned iso639-3_Script.txt files")
    parser.add_argument("--queries", required=True, help="language-script to search for")
    parser.add_argument("--pool", required=True, nargs="+", help="language-scripts to search in")
    parser.add_argument("--show", type=int, default=3, help="how many results are printed")
    return parser.parse_args()


def read(folder: Path, name: str) -> list[str]:
    file = folder / f"{name}.txt"
    if not file.is_file():
        raise UserError(f"{file} not found")
    return [line.strip() for line in file.read_text("utf-8").split("\n")]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def main() -> None:
    args = arguments()
    queries, pools = read(args.text, args.queries), {n: read(args.text, n) for n in args.pool}
    model = langsamp_jax.load_model(args.model)
    for name, lines in pools.items():
        both = [pair for pair in zip(queries, lines, strict=False) if all(pair)]
        if not both:
            raise UserError(f"{name} and {args.queries} have no line in common")
        asked, pool = (list(side) for side in zip(*both, strict=True))

        # [queries, pool]: the cosine of every sentence with every other.
        vectors = model.encode(asked, args.queries), model.encode(pool, name)
        similarity = unit(vectors[0]) @ unit(vectors[1]).T
        nearest = similarity.argmax(axis=1)

        print(f"\n{args.queries} -> {name}")
        for i in range(min(args.show, len(asked))):
            print(f"  {asked[i]}\n    {similarity[i, nearest[i]]:.3f}  {pool[nearest[i]]}")
        accuracy = (nearest == np.arange(len(asked))).mean()
        print(
            f"the translation is the nearest for {accuracy:.1%} of {len(asked):,} sentences; "
            f"chance: {1 / len(asked):.1%}"
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
