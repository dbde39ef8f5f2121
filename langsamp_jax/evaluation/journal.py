"""What an evaluation has finished, beside its result, so that it goes on where it was stopped."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import growing_file
from langsamp_jax.io.progress import Progress


class Journal:
    """Finished parts of the evaluation whose result will be ``output``, a JSON object a line.

    The first line says what is evaluated and how; parts of another evaluation are not taken up.
    Use as a context manager, and call ``forget`` when the result is written. Where no part was
    finished, no file is left.

    Raises:
      UserError: the file is of another evaluation, or damaged.
    """

    def __init__(self, output: Path, settings: dict[str, Any]):
        self.path = output.with_name(output.name + ".parts")
        settings = json.loads(json.dumps(settings))  # as it is read back
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # it may have been killed writing
        try:
            was, *parts = [json.loads(line) for line in whole] or [settings]
            self._parts = {record["part"]: record["result"] for record in parts}
            differ = [k for k in {**was, **settings} if was.get(k) != settings.get(k)]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is damaged ({error!r}); remove it") from None
        if self._parts and differ:
            raise UserError(
                f"{self.path} holds parts of another evaluation ({', '.join(sorted(differ))} "
                "differ): remove it, or name another --output"
            )
        self._stream = growing_file(self.path, b"".join(map(_line, [settings, *parts])))

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a part: what stands here, or else what ``compute`` gives."""
        if name not in self._parts:
            self._parts[name] = compute()
            self._stream.write(_line({"part": name, "result": self._parts[name]}))
            self._stream.flush()
        return self._parts[name]

    def each(
        self, languages: Iterable[str], compute: Callable[[str], Any]
    ) -> tuple[list[Any], dict[str, str]]:
        """``compute(language)`` of every language as a part of its own.

        Returns:
          the results, and why ``compute`` raised UserError for the other languages.
        """
        found, skipped, names = [], {}, list(languages)
        with Progress("evaluate", len(names), "languages") as progress:
            for name in names:
                try:
                    found.append(self.part(name, lambda name=name: compute(name)))
                except UserError as error:
                    skipped[name] = str(error)
                progress.advance(1)
        return found, skipped

    def forget(self) -> None:
        """Removes the parts, once they are closed and the result stands."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if not self._parts:
            self.forget()


def _line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"
