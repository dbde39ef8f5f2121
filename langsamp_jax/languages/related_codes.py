"""Codes that mean the same language or script as another, or one that it is part of."""

import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources

_SUGGESTED = 3

# Scripts under whose codes the same text is found.
_SCRIPTS = (
    "Hani Hans Hant Hanb",
    "Hang Kore",
    "Jpan Hrkt Hira Kana",
    "Arab Aran",
    "Latn Latf Latg",
    "Cyrl Cyrs",
)


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean deu, den?``, the end of a message; nothing if nothing is close.

    Args:
      name: a code, or a language-script, in any notation: ``ger``, ``zh-Hans``, ``pt_BR``.
      known: what there is. Suggested of it is what means the same by ISO 639-1, ISO 639-2/B and
        the codes that ISO 639-3 has retired; else what a macrolanguage joins; else what is
        spelled alike.
    """
    known = sorted(known)
    close = _related(name, known) or difflib.get_close_matches(name, known, _SUGGESTED, 0.5)
    return f"; did you mean {', '.join(close[:_SUGGESTED])}?" if close else ""


def same_language(code: str) -> list[str]:
    """Returns the codes of ISO 639-3 that a language code of any part of ISO 639 stands for."""
    import pycountry  # reads several JSON databases: only where a code is unknown

    keys = ("alpha_3", "bibliographic", "alpha_2")
    languages = (pycountry.languages.get(**{key: code}) for key in keys)
    current = [language.alpha_3 for language in languages if language is not None]
    return [*current, *_facts()["retired"].get(code, ())]


def language_and_script(name: str) -> tuple[str, str]:
    """Splits ``zh-Hans``, ``DEU_latn``, ``pt_BR``, ``deu`` or ``Hans``; "" where a part is not."""
    parts = re.match(r"(?:([A-Za-z]{2,3})(?:[-_]|$))?(?:([A-Za-z]{4})(?:[-_]|$))?", name)
    return (parts[1] or "").lower(), (parts[2] or "").title()


def _related(name: str, known: list[str]) -> list[str]:
    """Returns the names of ``known`` that may be meant, the nearest first."""
    language, script = language_and_script(name)
    if not language and not script:
        return []
    same = [language, *same_language(language)]
    scripts = [script, "", *_group(script)]
    parts = [(other, *language_and_script(other)) for other in known]
    for languages in (same, [code for each in same for code in _joined(each)]):
        ranked = [
            (languages.index(of), scripts.index(in_script) if script else 0, other)
            for other, of, in_script in parts
            if of in languages and (in_script in scripts or not script)
        ]
        if ranked:
            return [other for _, _, other in sorted(ranked)]
    return []


def _joined(code: str) -> list[str]:
    """Returns the macrolanguage that a language is part of, or its parts; then its siblings."""
    macrolanguages = _facts()["macrolanguages"]
    whole = [macro for macro, parts in macrolanguages.items() if code in parts]
    return [*whole, *macrolanguages.get(code, ()), *(x for of in whole for x in macrolanguages[of])]


def _group(script: str) -> list[str]:
    return [code for group in _SCRIPTS if script in (codes := group.split()) for code in codes]


@functools.cache
def _facts() -> Mapping[str, Mapping[str, list[str]]]:
    """Returns ``macrolanguages``, the parts of each, and ``retired``, what is used instead."""
    file = resources.files("langsamp_jax.languages") / "related_codes.json"
    facts = json.loads(file.read_text("utf-8"))
    return {
        kind: {code: others.split() for code, others in facts[kind].items()}
        for kind in ("macrolanguages", "retired")
    }
