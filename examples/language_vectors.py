"""Shows what the language vectors of a model know: which are near, and whether relatives are.

    python examples/language_vectors.py output/run --families families.tsv

A vector's nearest is the one of greatest cosine. For every grouping of the languages (the scripts
that they are written in; their families, if a file names them) it counts how often the nearest
is of the same group, beside what comes out when the groups are dealt to the languages at random.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import langsamp_jax
from langsamp_jax.errors import UserError
from langsamp_jax.languages.typology import read_families


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a run, or a full Hugging Face export")
    parser.add_argument(
        "--families", type=Path, help="a language code, a tab and a family on each line"
    )
    parser.add_argument("--neighbours", type=int, default=3, help="how many are named")
    parser.add_argument("--permutations", type=int, default=999)
    return parser.parse_args()


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Float [n, n]; -inf for a vector with itself."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity


def agreement(kind: str, groups: Mapping[str, str], codes, similarity, permutations: int) -> str:
    known = [i for i, code in enumerate(codes) if code in groups]
    if len(known) < 3:
        return f"{kind}: known of {len(known)} languages, too few to say anything"
    group = np.unique([groups[codes[i]] for i in known], return_inverse=True)[1]
    nearest = similarity[np.ix_(known, known)].argmax(axis=1)
    rng = np.random.default_rng(0)
    dealt = [rng.permutation(group) for _ in range(permutations)]
    chance = np.array([(one[nearest] == one).mean() for one in dealt])
    share = (group[nearest] == group).mean()
    p = (1 + (chance >= share).sum()) / (1 + permutations)
    return (
        f"{kind}: the nearest is of the same one for {share:.1%} of {len(known)} languages; "
        f"chance: {chance.mean():.1%}, p = {p:.3f}"
    )


def main() -> None:
    args = arguments()
    model = langsamp_jax.load_model(args.model)
    table = model.params.get("conditioning", {}).get("language")
    if table is None:
        raise UserError(f"{args.model} has no language vectors")

    # Rows of languages that no text was trained on are still at random; they are left out.
    scripts = dict(sorted(name.split("_") for name in model.inventory.language_scripts))
    codes = [code for code in model.inventory.languages if not scripts or code in scripts]
    rows = [model.inventory.languages.index(code) for code in codes]
    similarity = cosines(np.asarray(table)[rows])

    for code, row in zip(codes, similarity, strict=True):
        near = np.argsort(-row)[: min(args.neighbours, len(codes) - 1)]
        print(f"{code}: " + ", ".join(f"{codes[i]} {row[i]:.2f}" for i in near))
    print(agreement("script", scripts, codes, similarity, args.permutations))
    if args.families:
        families = read_families(args.families)
        print(agreement("family", families, codes, similarity, args.permutations))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
