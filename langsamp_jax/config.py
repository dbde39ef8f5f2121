"""Frozen config dataclasses that check themselves, and how gin fills them.

A class decorated with ``configurable("train")`` has its fields bound as ``train.num_steps``.
Making one reads no gin: ``from_gin`` does, once, at the command line; all else is handed values.
"""

import ast
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import gin

from langsamp_jax.errors import UserError, moved_module
from langsamp_jax.io.text_lines import read_lines

REGISTERED: dict[str, type] = {}  # the config classes that have been imported, by gin name
_BOUND: dict[str, Callable[[], dict[str, Any]]] = {}  # by name: the fields that gin has bound

Config = TypeVar("Config")

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


@typing.dataclass_transform(frozen_default=True)
def configurable(name: str) -> Callable[[type], type]:
    """Makes a class a frozen dataclass that gin binds as ``name`` and that checks its types.

    A ``check`` method, where there is one, adds the conditions that types cannot say.
    """

    def decorate(cls: type) -> type:
        cls.gin_name = name
        cls.__post_init__ = _check
        REGISTERED[name] = dataclasses.dataclass(frozen=True)(cls)

        def bound(**fields: Any) -> dict[str, Any]:
            return fields

        bound.__signature__ = inspect.signature(REGISTERED[name])  # gin checks names against it
        _BOUND[name] = gin.external_configurable(bound, name, module="langsamp")
        return REGISTERED[name]

    return decorate


def from_gin(cls: type[Config]) -> Config:
    """Returns the config of class ``cls`` with the values that gin has bound.

    Raises:
      UserError: a value of the wrong type, or outside its limits.
    """
    return cls(**_BOUND[cls.gin_name]())


@dataclasses.dataclass(frozen=True)
class Setting:
    """A gin name, as its config class defines it.

    Attributes:
      name: ``train.num_steps``.
      type: the values that it takes, in words.
      default: its value where gin binds none.
      meaning: what the ``Attributes:`` of the class say of it.
    """

    name: str
    type: str
    default: Any
    meaning: str


def all_settings() -> list[Setting]:
    """Returns the settings of every config class that has been imported, by group."""
    settings = []
    for name, cls in sorted(REGISTERED.items()):
        hints, meanings = typing.get_type_hints(cls), attribute_docs(cls)
        for field in dataclasses.fields(cls):
            kind = re.sub(r"\ba ", "", _describe(hints[field.name]))
            meaning = meanings.get(field.name, "")
            settings.append(Setting(f"{name}.{field.name}", kind, field.default, meaning))
    return settings


def attribute_docs(cls: type) -> dict[str, str]:
    """Returns what the ``Attributes:`` section of a class's docstring says, by attribute.

    An attribute begins a line, indented by two, with ``name:``; its further lines stand deeper.
    """
    docs: dict[str, str] = {}
    _, _, section = inspect.getdoc(cls).partition("\nAttributes:\n")
    for line in section.partition("\n\n")[0].splitlines():
        if begins := re.fullmatch(r"  (\w+): (.+)", line):
            name, docs[begins[1]] = begins.groups()
        else:
            docs[name] += " " + line.strip()
    return docs


def require(condition: bool, config: Any, field: str, expected: str) -> None:
    """Raises UserError ``name.field = value: expected ...`` where ``condition`` is false."""
    if not condition:
        value = getattr(config, field)
        raise UserError(f"{config.gin_name}.{field} = {value!r}: expected {expected}")


def parse_gin(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Reads gin files, then ``name.field=value`` bindings, which win.

    A file is looked for here, then among the shipped ones; what it includes, beside it first. A
    binding's value that is no Python literal is taken as text, so that
    ``model.placement=input`` needs no quotes inside quotes.

    Raises:
      UserError: a file that is absent, a name or field that does not exist, a bad value.
    """
    gin.clear_config()
    for file in files:
        _parse_file(_find(file, Path.cwd(), "--gin_file"))
    for binding in bindings:
        _parse(_quote(binding), f"--gin.{binding}")
    try:
        gin.finalize()
    except ValueError as error:
        raise UserError(f"gin: {_explain(error)}") from None


def gin_text(configs: Sequence[Any]) -> str:
    """Returns the gin text that gives these configs again, defaults included."""
    sections = []
    for config in sorted(configs, key=lambda config: config.gin_name):
        fields = sorted(dataclasses.asdict(config).items())
        lines = [f"{config.gin_name}.{name} = {value!r}" for name, value in fields]
        sections.append(
            "\n".join([f"# Parameters for {config.gin_name}:", "# " + "=" * 78, *lines])
        )
    return "\n\n".join(sections) + "\n"


def _check(config: Any) -> None:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        require(_matches(value, hint), config, field.name, _describe(hint))
    if hasattr(config, "check"):
        config.check()


def _matches(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        (of,) = typing.get_args(hint)
        return isinstance(value, list) and all(_matches(part, of) for part in value)
    if typing.get_origin(hint) is dict:
        key_of, value_of = typing.get_args(hint)
        return isinstance(value, dict) and all(
            _matches(key, key_of) and _matches(part, value_of) for key, part in value.items()
        )
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list [{_describe(*typing.get_args(hint))}, ...]"
    if typing.get_origin(hint) is dict:
        key, value = map(_describe, typing.get_args(hint))
        return f"a dict {{{key}: {value}, ...}}"
    if hint is Any:
        return "a value"
    return "None" if hint is types.NoneType else _WORDS[hint]


def _parse_file(file: Path, including: tuple[Path, ...] = ()) -> None:
    """Parses the files that ``file`` includes, in order, then its own lines.

    Raises:
      UserError: it cannot be read, or is one of ``including``, the files that led to it.
    """
    chain = (*including, file.resolve())
    if file.resolve() in including:
        names = " includes ".join(map(str, chain))
        raise UserError(f"gin file {file} includes itself: {names}")
    try:
        lines = read_lines(file)
    except (OSError, UserError) as error:
        raise UserError(f"gin file {file} cannot be read: {error}") from None
    for number, line in enumerate(lines):
        if include := re.fullmatch(r"""include\s+(['"])(.+)\1\s*(#.*)?""", line.strip()):
            _parse_file(_find(include[2], file.parent, f"{file}, line {number + 1}"), chain)
            lines[number] = ""  # the lines below keep their numbers
    _parse("\n".join(lines), str(file))


def _find(name: str, folder: Path, where: str) -> Path:
    shipped = Path(str(resources.files("gin_configs")))
    for file in (folder / name, shipped / name):
        if file.is_file():
            return file
    raise UserError(f"{where}: gin file {name} not found")


def _parse(text: str, where: str) -> None:
    try:
        gin.parse_config(text)
    except (ValueError, TypeError, SyntaxError, AttributeError, ImportError) as error:
        lines = re.findall(r"\bline (\d+)", str(error)) if "\n" in text else []
        place = f"{where}, line {lines[-1]}" if lines else where
        raise UserError(f"{place}: {_explain(error)}") from None


def _quote(binding: str) -> str:
    name, equals, value = (part.strip() for part in binding.partition("="))
    if not equals or not re.fullmatch(r"(langsamp\.)?\w+\.\w+", name):
        raise UserError(f"--gin.{binding}: expected --gin.NAME.FIELD=VALUE")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if not value.startswith(("@", "%")):
            value = repr(value)
    return f"{name} = {value}"


def _explain(error: Exception) -> str:
    """Returns gin's own message in one line, with the names that were perhaps meant."""
    text = " ".join(str(error).split())
    if moved := moved_module(error):
        return moved
    unknown = re.search(r"No configurable matching '([^']+)'", text)
    if unknown:
        name = unknown.group(1)
        close = difflib.get_close_matches(name, REGISTERED, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(REGISTERED)}"
        return f"there is no configurable {name!r}; {meant}"
    field = re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text)
    if field:
        name, wrong = field.groups()
        fields = [f.name for f in dataclasses.fields(REGISTERED[name.split(".")[-1]])]
        close = difflib.get_close_matches(wrong, fields, n=1)
        meant = f"did you mean {close[0]}?" if close else f"it has {', '.join(fields)}"
        return f"{name} has no {wrong!r}; {meant}"
    if token := re.search(r"Failed to parse token '([^']*)'", text):
        return f"{token.group(1)!r} is neither a number, a quoted text nor another Python literal"
    return re.sub(r" (In bindings string|\(?line \d).*", "", text)
