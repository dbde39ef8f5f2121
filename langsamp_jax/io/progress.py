"""Progress for people: a bar on a terminal, plain lines elsewhere; tables."""

import sys
import time
from collections.abc import Mapping, Sequence

import tabulate
import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts up to ``total`` on standard error. Use as a context manager."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0):
        self._label, self._total, self._unit, self._done = label, total, unit, start
        self._printed = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                desc=label, total=total, initial=start, unit=unit, unit_scale=True, leave=False
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, amount: int, **facts: object) -> None:
        """Adds ``amount``; ``facts`` (loss, speed) are shown beside the count."""
        self._done += amount
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            shown = "".join(f"  {name} {value}" for name, value in facts.items())
            self.say(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}{shown}")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def table(records: Sequence[Mapping[str, object]], headers: Mapping[str, str]) -> str:
    """Formats a table. ``headers`` maps the keys to show, in order, to ``title:format``."""
    titles, formats = zip(*(header.partition(":")[::2] for header in headers.values()), strict=True)
    rows = [
        [_cell(record.get(key), form) for key, form in zip(headers, formats, strict=True)]
        for record in records
    ]
    aligned = ["right" if form else "left" for form in formats]
    return tabulate.tabulate(rows, titles, disable_numparse=True, colalign=aligned)


def _cell(value: object, form: str) -> str:
    return "-" if value is None else format(value, form)
