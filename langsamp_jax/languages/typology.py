"""What is known of languages apart from any model: distances between them, and their families.

Two kinds of file are read. URIEL (Littell et al. 2017, as distributed with lang2vec) has features
of real languages; ``world.json`` of ``langsamp synthesize`` has the tree of the invented ones.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.io.text_lines import read_lines, read_text

# A macrolanguage of ISO 639-3, and the member of it that text under its code is written in.
# Corpora and databases differ in which of the two they name; where a file has one, it is read as
# the other too. Macrolanguages without such a member (Quechua, Hmong, Fula) are not here.
_MACROLANGUAGES = {
    "ara": "arb",
    "aym": "ayr",
    "aze": "azj",
    "bik": "bcl",
    "est": "ekk",
    "fas": "pes",
    "grn": "gug",
    "iku": "ike",
    "kom": "kpv",
    "kur": "kmr",
    "lav": "lvs",
    "mlg": "plt",
    "mon": "khk",
    "msa": "zsm",
    "nep": "npi",
    "nor": "nob",
    "ori": "ory",
    "orm": "gaz",
    "pus": "pbt",
    "sqi": "als",
    "swa": "swh",
    "uzb": "uzn",
    "yid": "ydd",
    "zho": "cmn",
}

# The columns of a families file with a header, the first that is there.
_CODE_COLUMNS = ("iso639_3", "code", "lang_script")
_FAMILY_COLUMNS = ("family_glottolog", "family")


@dataclasses.dataclass(frozen=True)
class Reference:
    """Holds distances between languages, of no model: float [n, n], in the order of ``codes``.

    Only their order is used, so the unit is free.
    """

    name: str
    codes: tuple[str, ...]
    distances: np.ndarray

    def between(self, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
        """Returns the distances from each of ``rows`` to each of ``columns``; NaN: an unknown code.

        Returns:
          float64 [rows, columns].
        """
        index = {code: number for number, code in enumerate(self.codes)}
        padded = np.pad(self.distances.astype(np.float64), (0, 1), constant_values=np.nan)
        unknown = len(self.codes)  # the row and column of NaN
        places = ([index.get(code, unknown) for code in codes] for codes in (rows, columns))
        return padded[np.ix_(*places)]


def read_references(file: Path) -> list[Reference]:
    """Reads the distances that a file gives.

    Args:
      file: ``world.json`` of a synthetic corpus: ``tree``, the number of sound changes between two
        languages of a family; languages of different families, which share no ancestor, are one
        farther than the farthest relatives. Or an ``.npz`` file with the arrays ``langs`` (str
        [n]), ``knn`` (float [n, features]) and ``fam`` (bool [n, nodes of the family trees]):
        ``typology``, the cosine distance (1 - cosine) over ``knn``, URIEL's syntactic, phonological
        and inventory features with its predictions for what is unknown; and ``genetic``, the cosine
        distance over ``fam``. Languages without a feature are left out.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """
    return [_tree(file)] if file.suffix == ".json" else _uriel(file)


def read_families(file: Path) -> dict[str, str]:
    """Reads the name of the family of each language code; languages without one are left out.

    Args:
      file: text with a language code, a tab and the name of a family on each line; or a table with
        a header, its columns separated by tabs, of which ``iso639_3``, ``code`` or ``lang_script``
        has the language (``deu``, ``deu_Latn``) and ``family_glottolog`` or ``family`` the family;
        or ``world.json`` of a synthetic corpus.

    Raises:
      UserError: the file is missing, damaged or of another kind, or puts a language in two
        families.
    """
    if file.suffix == ".json":
        world = _read_world(file)
        return {code: family for family, within in world.items() for code in within}
    families: dict[str, str] = {}
    for number, code, family in _family_lines(file):
        if families.setdefault(code, family) != family:
            raise UserError(
                f"{file}, line {number}: {code} is {family} here and {families[code]} above"
            )
    return families | {code: families[same] for code, same in _aliases(families)}


def _family_lines(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yields the number of the line, the language and the family."""
    try:
        lines = read_lines(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error})") from None
    width, code, family = 2, 0, 1
    header = lines[0].split("\t") if lines else []
    codes, families = (
        [header.index(name) for name in names if name in header]
        for names in (_CODE_COLUMNS, _FAMILY_COLUMNS)
    )
    first = bool(codes and families)
    if first:
        width, code, family = len(header), codes[0], families[0]
    for number, line in enumerate(lines[first:], 1 + first):
        fields = line.split("\t")
        if len(fields) != width:
            expected = f"{width} columns" if first else "a code, a tab and a family"
            raise UserError(f"{file}, line {number}: expected {expected}")
        language, name = fields[code].partition("_")[0].strip(), fields[family].strip()
        if language and name:
            yield number, language, name


def _uriel(file: Path) -> list[Reference]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            languages, knn, fam = (arrays[name] for name in ("langs", "knn", "fam"))
    except FileNotFoundError:
        raise UserError(f"{file} not found") from None
    except KeyError:
        raise UserError(f"{file} lacks one of the arrays langs, knn and fam") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} is damaged or no .npz file of arrays, and no world.json ({error})"
        ) from None
    codes = dict.fromkeys(languages.ravel().tolist())
    for features in (knn, fam):
        if not (
            languages.dtype.kind == "U"
            and features.dtype.kind in "bif"
            and features.ndim == 2
            and len(codes) == len(languages) == len(features)
            and np.isfinite(features).all()
        ):
            raise UserError(f"{file}: expected a row of finite numbers for each of its languages")
    named = {"typology": knn, "genetic": fam}
    return [_by_cosine(name, languages, features) for name, features in named.items()]


def _by_cosine(name: str, languages: np.ndarray, features: np.ndarray) -> Reference:
    described = features.any(axis=1)
    rows = {code: row for row, code in enumerate(languages[described].tolist())}
    rows |= {code: rows[same] for code, same in _aliases(rows)}
    vectors = features[described][list(rows.values())]
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    # Rounded: of languages that are equally far, none is nearer by the order of a sum.
    return Reference(name, tuple(rows), 1 - np.round(unit @ unit.T, 12))


def _aliases(known: Collection[str]) -> list[tuple[str, str]]:
    """Returns pairs of a code that is not known, and the known code of the same language."""
    pairs = [
        *_MACROLANGUAGES.items(),
        *((member, macro) for macro, member in _MACROLANGUAGES.items()),
    ]
    return [(code, same) for code, same in pairs if code not in known and same in known]


def _tree(file: Path) -> Reference:
    world = _read_world(file)
    within = {code: others for family in world.values() for code, others in family.items()}
    unrelated = 1 + max(distance for others in within.values() for distance in others.values())
    distances = [[others.get(code, unrelated) for code in within] for others in within.values()]
    return Reference("tree", tuple(within), np.array(distances, np.float64))


def _read_world(file: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Reads the sound changes between two languages, by family, language and language."""
    try:
        families = json.loads(read_text(file))["families"]
        world = {
            family: {
                code: {other: int(distances[code][other]) for other in distances}
                for code in distances
            }
            for family, fields in families.items()
            for distances in [fields["distances"]]
        }
    except FileNotFoundError:
        raise UserError(f"{file} not found") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise UserError(f"{file} is no world.json of langsamp synthesize, or damaged") from None
    if not any(world.values()):
        raise UserError(f"{file} has no languages")
    return world
