"""Protocol: where the rows of the language and script tables lie, and what that goes with.

Everything is a function of the two tables; no model is run. The definitions are ours
(docs/analyses.md): the paper reports such an analysis, but neither its data nor its formulas.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import centred_ranks, cosines, mantel
from langsamp_jax.languages.inventory import scripts_by_language, split_language_script
from langsamp_jax.languages.typology import Reference, read_families, read_references

_FEWEST = 4  # languages; three have three distances, and six permutations


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of an embedding table that were trained: codes [n] and vectors, float [n, hidden].

    A row that no text trained is noise around the origin, and does not belong here.
    """

    codes: tuple[str, ...]
    vectors: np.ndarray

    def rows(self, codes: Sequence[str]) -> np.ndarray:
        """Returns the vectors of ``codes``, float64 [codes, hidden]; NaN for a code without one."""
        index = {code: number for number, code in enumerate(self.codes)}
        missing = np.full((1, self.vectors.shape[1]), np.nan)
        return np.concatenate([self.vectors, missing])[[index.get(code, -1) for code in codes]]


Tables = Mapping[str, Table]  # "language" and "script"; a model may have only one of the two


def evaluate(
    model: LoadedModel,
    data: None,
    journal: Journal,
    references: Sequence[Path],
    families: Path | None,
) -> dict[str, Any]:
    """Returns ``geometry`` of the tables of a model; no text is read.

    Args:
      references, families: files, see ``read_references`` and ``read_families``.
    """
    distances = [reference for file in references for reference in read_references(file)]
    family_of = {} if families is None else read_families(families)
    scripts, tables = scripts_by_language(model.inventory.language_scripts), trained_tables(model)
    languages = set(tables["language"].codes if "language" in tables else ())
    if families is not None and languages and not languages & family_of.keys():
        raise UserError(f"--families {families} has none of the model's {len(languages)} languages")
    return geometry(tables, distances, family_of, scripts)


def show(record: Mapping[str, Any]) -> str:
    lines = []
    for kind, table in record["tables"].items():
        shares = " and ".join(f"{share:.0%}" for share in table["explained"])
        lines.append(f"{len(table['names'])} {kind} vectors; two components explain {shares}")
    for correlation in _correlations(record):
        agreement = correlation.get("reason")
        if agreement is None:
            agreement = "rho {rho:.3f}, p {p:.4f}, {languages} languages".format(**correlation)
        lines.append(f"{correlation['with']}: {agreement}")
    return "\n".join(lines)


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    correlations = [record for record in _correlations(record) if record["rho"] is not None]
    return {f"{record['with']}/rho": record["rho"] for record in correlations}


def trained_tables(trained: LoadedModel) -> dict[str, Table]:
    """Returns the trained rows of the two tables of a model; all, where it does not say which.

    Raises:
      UserError: it has no tables.
    """
    if trained.config.placement == "none":
        raise UserError(f"{trained.path} has no language and script vectors")
    inventory, known = trained.inventory, trained.inventory.language_scripts
    codes = {"language": inventory.languages, "script": inventory.scripts}
    tables = {}
    for kind, vectors in sorted(trained.params["conditioning"].items()):
        place = ("language", "script").index(kind)  # in the name of a language-script
        seen = {split_language_script(name)[place] for name in known} if known else codes[kind]
        rows = [row for row, code in enumerate(codes[kind]) if code in seen]
        tables[kind] = Table(tuple(codes[kind][row] for row in rows), np.asarray(vectors)[rows])
    return tables


def geometry(
    tables: Tables,
    references: Sequence[Reference],
    families: Mapping[str, str],
    scripts: Mapping[str, str],
    permutations: int = 9999,
    seed: int = 0,
    neighbours: int = 5,
) -> dict[str, Any]:
    """Describes where the rows lie, and how the language table agrees with references.

    Args:
      tables: ``language`` and ``script``, or one of them.
      references: distances between languages to compare the language table's with, see
        ``typology.read_references``.
      families: language code -> family, for the colours of a picture.
      scripts: language code -> what it is written in, in the text that the model was trained on.
        The script vector holds what languages of one script have in common, so their language
        vectors say how they differ; relatives can be seen only among languages of one script.
      permutations, seed: of the Mantel test.
      neighbours: how many nearest rows are named for each.

    Returns:
      ``{"tables": {"language": record, "script": record}}``. A record has ``names`` [n],
      ``coordinates`` [n, 2] and ``explained`` [2] (``principal_components``), ``neighbours``
      (name -> [[other, cosine], ...], the nearest first), and ``correlations``, two for each
      reference, over all pairs and over pairs within a script: ``with``, ``rho`` and ``p``
      (``mantel``), ``languages`` that are in a pair and ``permutations``; where there is no rho, it
      and p are None and ``reason`` says why. The
      language table's record also has ``families`` [n], None where unknown; the script table's has
      no correlations, as there are no distances between scripts.

    Raises:
      UserError: a table has no rows, or values that are not finite.
    """
    for kind, table in tables.items():
        if not len(table.codes):
            raise UserError(f"no row of the {kind} table was trained")
        if not np.isfinite(table.vectors).all():
            raise UserError(f"the {kind} table has values that are not finite; training diverged")
    records = {kind: _layout(table, neighbours) for kind, table in tables.items()}
    if "language" in tables:
        table = tables["language"]
        records["language"] |= {
            "families": [families.get(code) for code in table.codes],
            "correlations": [
                _correlation(table, reference, strata, permutations, seed)
                for reference in references
                for strata in (None, scripts)
            ],
        }
    return {"tables": records}


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates on two principal components and the shares of variance they explain.

    A component points to where its weight of greatest magnitude is positive (as in scikit-learn),
    so that the same table gives the same picture. Components that a table does not have are 0.

    Args:
      vectors: float [n, hidden], n at least 1.

    Returns:
      float64 [n, 2] and [2].
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, scales, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    coordinates, variances = np.zeros((len(vectors), 2)), np.zeros(2)
    dimensions = min(2, len(scales))
    coordinates[:, :dimensions] = (left * signs * scales)[:, :dimensions]
    variances[:dimensions] = scales[:dimensions] ** 2
    return coordinates, variances / max((scales**2).sum(), np.finfo(np.float64).tiny)


def nearest(table: Table, count: int) -> dict[str, list[tuple[str, float]]]:
    """Returns for each code the ``count`` others of greatest cosine and it; ties in table order."""
    similarity = cosines(table.vectors, table.vectors)
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(table.codes) - 1)]
    return {
        code: [(table.codes[other], float(row[other])) for other in others]
        for code, row, others in zip(table.codes, similarity, order, strict=True)
    }


def _correlations(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return record["tables"].get("language", {}).get("correlations", ())


def _layout(table: Table, neighbours: int) -> dict[str, Any]:
    coordinates, explained = principal_components(table.vectors)
    return {
        "names": list(table.codes),
        "coordinates": coordinates.tolist(),
        "explained": explained.tolist(),
        "neighbours": {
            code: [list(pair) for pair in near] for code, near in nearest(table, neighbours).items()
        },
        "correlations": [],
    }


def _correlation(
    table: Table,
    reference: Reference,
    scripts: Mapping[str, str] | None,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """Correlates over all pairs, or over those within one of ``scripts``."""
    everywhere = dict.fromkeys(table.codes, "") if scripts is None else scripts
    comparable = everywhere.keys() & reference.codes
    sizes = Counter(everywhere[code] for code in table.codes if code in comparable)
    common = [code for code in table.codes if code in comparable and sizes[everywhere[code]] > 1]
    name = reference.name if scripts is None else f"{reference.name} within a script"
    record = {"with": name, "rho": None, "p": None, "languages": len(common)}
    record["permutations"] = permutations
    if len(common) < _FEWEST:
        return record | {"reason": f"fewer than {_FEWEST} languages in common"}
    vectors = table.rows(common)
    pair = 1 - cosines(vectors, vectors), reference.between(common, common)
    strata = np.unique([everywhere[code] for code in common], return_inverse=True)[1]
    if not all(centred_ranks(matrix, strata).any() for matrix in pair):
        return record | {"reason": "all languages are equally far from each other"}
    rho, p = mantel(*pair, permutations, seed, strata)
    return record | {"rho": rho, "p": p}
