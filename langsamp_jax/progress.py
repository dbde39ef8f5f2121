"""Progress for people: a bar on a terminal, plain lines elsewhere; speed; tables."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import tabulate
import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts up to ``total`` on standard error. Use as a context manager."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0):
        self._label, self._total, self._unit, self._done = label, total, unit, start
        self._said = time.monotonic()
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
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            shown = "".join(f"  {name} {value}" for name, value in facts.items())
            self.say(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}{shown}")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def table(records: Sequence[Mapping[str, object]], headers: Mapping[str, str]) -> str:
    """A table for people. ``headers`` maps the keys to show, in order, to ``title:format``."""
    titles, formats = zip(*(header.partition(":")[::2] for header in headers.values()), strict=True)
    rows = [
        [_cell(record.get(key), form) for key, form in zip(headers, formats, strict=True)]
        for record in records
    ]
    aligned = ["right" if form else "left" for form in formats]
    return tabulate.tabulate(rows, titles, disable_numparse=True, colalign=aligned)


def _cell(value: object, form: str) -> str:
    return "-" if value is None else format(value, form)


class Speedometer:
    """Tokens a second since the last reading, leaving out what happens inside ``paused``.

    The first step only starts the clock: most of it is compilation.
    """

    def __init__(self, tokens_per_step: int):
        self._tokens = tokens_per_step
        self._steps, self._since, self._away = -1, 0.0, 0.0

    def count(self) -> None:
        """Says that a step has been dispatched."""
        self._steps += 1
        if self._steps == 0:
            self._since, self._away = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        left = time.perf_counter()
        yield
        self._away += time.perf_counter() - left

    def read(self) -> dict[str, float]:
        """``{"tokens_per_second": ...}``, or nothing where no whole step has been timed."""
        if self._steps < 1:
            return {}
        now = time.perf_counter()
        speed = self._steps * self._tokens / (now - self._since - self._away)
        self._steps, self._since, self._away = 0, now, 0.0
        return {"tokens_per_second": speed}
