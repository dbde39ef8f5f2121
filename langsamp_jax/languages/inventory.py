"""Language and script codes <-> rows of the two embedding tables, stable for ever."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, NamedTuple

from langsamp_jax.errors import UserError
from langsamp_jax.languages.related_codes import language_and_script, same_language, suggest


class TableIds(NamedTuple):
    """Names rows of the language table and of the script table: a number each, or int32 [batch]."""

    language: Any
    script: Any


@dataclasses.dataclass(frozen=True)
class Inventory:
    """Holds the row order of the language and script tables.

    A language written in two scripts has one language row. Rows are never reordered:
    new codes are appended, so a trained table keeps its meaning. ``language_scripts`` says, sorted,
    which pairs there is text of, as far as it is known.
    """

    languages: tuple[str, ...]
    scripts: tuple[str, ...]
    language_scripts: tuple[str, ...] = ()

    def extended(self, language_scripts: Iterable[str]) -> "Inventory":
        """Returns this inventory with the codes it lacks appended in sorted order."""
        names = sorted({*self.language_scripts, *language_scripts})
        pairs = [split_language_script(name) for name in names]
        languages = sorted({language for language, _ in pairs} - set(self.languages))
        scripts = sorted({script for _, script in pairs} - set(self.scripts))
        return Inventory(
            self.languages + tuple(languages), self.scripts + tuple(scripts), tuple(names)
        )

    def ids(self, language_script: str) -> TableIds:
        """Returns the rows of ``deu_Latn``.

        Raises:
          UserError: a code has no row; the closest known codes are named.
        """
        language, script = split_language_script(language_script)
        languages, scripts = self._rows
        return TableIds(_row(language, languages, "language"), _row(script, scripts, "script"))

    @functools.cached_property
    def _rows(self) -> tuple[dict[str, int], dict[str, int]]:
        """Returns the row of each language code and of each script code."""
        return _numbered(self.languages), _numbered(self.scripts)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Inventory":
        fields = json.loads(text)
        names = (field.name for field in dataclasses.fields(Inventory))
        return Inventory(*(tuple(fields[name]) for name in names))

    @staticmethod
    def published() -> "Inventory":
        """Returns the 610 languages and 30 scripts of the published tables, in their order."""
        return Inventory.from_json(_published_text())


EMPTY = Inventory((), ())


def seen_by_xlmr() -> frozenset[str]:
    """Returns the 100 language-scripts that the published code counts as XLM-R's."""
    return frozenset(json.loads(_published_text())["xlmr_language_scripts"])


def is_language_script(name: str) -> bool:
    """Returns whether ``name`` has the form of ``deu_Latn``; its codes may not exist."""
    return re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", name) is not None


def split_language_script(name: str) -> tuple[str, str]:
    """Splits ``deu_Latn`` into ``("deu", "Latn")``; raises UserError where the form is another."""
    if not is_language_script(name):
        raise UserError(
            f"{name!r} is not of the form iso639-3_Script, for example deu_Latn"
            f"{suggest(name, in_right_form(name))}"
        )
    language, script = name.split("_")
    return language, script


def in_right_form(name: str) -> list[str]:
    """Returns the language-scripts that a name in another notation may stand for."""
    language, script = language_and_script(name)
    known = [code for code in same_language(language) if code in _known_codes()[0]]
    if script in _known_codes()[1]:
        return [f"{code}_{script}" for code in known]
    published = Inventory.published().language_scripts
    return [name for code in known for name in published if name.startswith(f"{code}_")]


def scripts_by_language(names: Iterable[str]) -> dict[str, str]:
    """Returns what each language code is written in: ``Latn``, or ``Cyrl, Latn``."""
    scripts_of: dict[str, list[str]] = {}
    for language, script in sorted(map(split_language_script, names)):
        scripts_of.setdefault(language, []).append(script)
    return {language: ", ".join(scripts) for language, scripts in scripts_of.items()}


def check_language_script(name: str) -> None:
    """Raises UserError unless both codes of ``name`` exist.

    Languages: ISO 639-3 and its private range qaa to qtz, the families of ISO 639-5, and the
    codes of the published inventory (it holds two retired ones). Scripts: ISO 15924 and its
    private range Qaaa to Qabx.
    """
    language, script = split_language_script(name)
    languages, scripts = _known_codes()
    if language not in languages and not re.fullmatch(r"q[a-t][a-z]", language):
        raise UserError(
            f"{name!r}: {language!r} is not an ISO 639-3 language code"
            f"{suggest(language, languages)}"
        )
    if script not in scripts and not is_private_script(script):
        raise UserError(
            f"{name!r}: {script!r} is not an ISO 15924 script code{suggest(script, scripts)}"
        )


def is_private_script(script: str) -> bool:
    """Returns whether ISO 15924 leaves a code to its users, who may write it in private letters."""
    return re.fullmatch(r"Qa(a[a-z]|b[a-x])", script) is not None


@functools.cache
def language_name(name: str) -> str:
    """Returns the English name, in ISO 639-3, of ``deu_Latn`` or ``deu``; else what was given."""
    import pycountry

    language = pycountry.languages.get(alpha_3=name.partition("_")[0])
    return name if language is None else language.name


@functools.cache
def _known_codes() -> tuple[frozenset[str], frozenset[str]]:
    import pycountry  # reads several JSON databases: only where codes are checked

    languages = {language.alpha_3 for language in pycountry.languages}
    families = {family.alpha_3 for family in pycountry.language_families}
    scripts = {script.alpha_4 for script in pycountry.scripts}
    published = Inventory.published()
    return (
        frozenset(languages | families | set(published.languages)),
        frozenset(scripts | set(published.scripts)),
    )


@functools.cache
def _published_text() -> str:
    file = resources.files("langsamp_jax.languages") / "published_inventory.json"
    return file.read_text("utf-8")


def _numbered(codes: tuple[str, ...]) -> dict[str, int]:
    return {code: row for row, code in enumerate(codes)}


def _row(code: str, rows: Mapping[str, int], kind: str) -> int:
    if code not in rows:
        raise UserError(f"the model has no {kind} {code!r}{suggest(code, rows)}")
    return rows[code]
