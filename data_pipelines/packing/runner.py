"""Independent work, done anywhere: each item leaves its result in a file.

An item that has a result is not done again, so that an interrupted stage is resumed. A runner need
only see to it that a function is called for every item, by whatever processes on whatever machines
share the folder.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import full_disk_as_oserror

_SECONDS_ALONE = 1.0

Entry = tuple[str, Any]  # the key of an item, and the item


class Runner(Protocol):
    """Calls ``call(entry)`` for every entry, and yields the keys of those that are done."""

    def __call__(
        self, call: Callable[[Entry], None], entries: Sequence[Entry]
    ) -> Iterator[str]: ...

    def close(self) -> None:
        """Ends the processes of the runner."""


def run(
    function: Callable[[str, Any], dict[str, Any]],
    folder: Path,
    items: Mapping[str, Any],
    runner: Runner,
    done: Callable[[Any], None],
) -> dict[str, dict[str, Any]]:
    """Does the items that have no result yet, and returns the results of all.

    Args:
      function: makes a result, a JSON object, of a key and its item. It and the items are pickled.
      folder: where the results are, as ``KEY.json``.
      done: called with every item that has its result.

    Raises:
      UserError, OSError: as the function did, wherever it ran.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {key: result for key in items if (result := _read(folder, key)) is not None}
    for key in results:
        done(items[key])
    entries = [(key, item) for key, item in items.items() if key not in results]
    for key in runner(partial(_leave_result, function, folder), entries):
        results[key] = _raise_or_return(folder, key)
        done(items[key])
    return {key: results[key] for key in items}


class LocalRunner:
    """Runs on this machine: in ``workers`` processes, or in this one if that is 1.

    By default there is one worker a core. They are started only if this process alone is not done
    in the time that starting them takes.
    """

    def __init__(self, workers: int | None = None):
        if workers is not None and workers < 1:
            raise UserError(f"--workers {workers}: expected a whole number above 0")
        self._workers = workers or os.cpu_count() or 1
        self._alone = 0.0 if workers else _SECONDS_ALONE
        self._executor: ProcessPoolExecutor | None = None

    def __call__(self, call: Callable[[Entry], None], entries: Sequence[Entry]) -> Iterator[str]:
        began, alone = time.monotonic(), 0
        while alone < len(entries) and (
            self._workers == 1
            or (self._executor is None and time.monotonic() - began < self._alone)
        ):
            call(entries[alone])
            yield entries[alone][0]
            alone += 1
        if alone == len(entries):
            return
        self._executor = self._executor or ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), _end_with_parent
        )
        futures = {self._executor.submit(call, entry): entry[0] for entry in entries[alone:]}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for want of memory; the same command goes on where "
                "it stopped, and --workers 1 needs the least"
            ) from None
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Ends the workers."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Makes a worker leave Ctrl-C to its parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _leave_result(
    function: Callable[[str, Any], dict[str, Any]], folder: Path, entry: Entry
) -> None:
    """Calls the function for one item and writes its result, or its error, into ``KEY.json``."""
    key, item = entry
    try:
        with full_disk_as_oserror(folder):
            result = {"result": function(key, item)}
    except UserError as error:
        result = {"error": str(error)}
    except OSError as error:
        if error.errno is None:
            raise
        result = {"error": error.strerror, "errno": error.errno, "file": str(error.filename)}
    temporary = folder / f"{key}.json.{os.getpid()}"
    with full_disk_as_oserror(folder):
        temporary.write_text(json.dumps(result), "utf-8")
    os.replace(temporary, folder / f"{key}.json")


def _read(folder: Path, key: str) -> dict[str, Any] | None:
    """Reads the result of an item; None if it has none, or failed."""
    try:
        return json.loads((folder / f"{key}.json").read_bytes()).get("result")
    except (FileNotFoundError, ValueError):
        return None


def _raise_or_return(folder: Path, key: str) -> dict[str, Any]:
    """Returns the result of an item, or raises the error that it left."""
    file = folder / f"{key}.json"
    record = json.loads(file.read_bytes())
    if "error" in record:
        file.unlink()  # it is done anew
    if "errno" in record:
        raise OSError(record["errno"], record["error"], record["file"])
    if "error" in record:
        raise UserError(record["error"])
    return record["result"]
