"""One holder of an output at a time, on a disk, a network disk or in an object store.

A claim is a small file that its holder renews. Clocks are not compared: who finds the claim of
another machine watches whether it changes. On the same machine a claim ends with its process.
"""

import contextlib
import json
import os
import platform
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import create, is_remote, read

CLAIM = "claim.json"  # in a folder that is claimed

_SECONDS = 5.0  # between renewals
_RENEWALS = 5  # that a holder on another machine may miss


class Claim:
    """Holds ``output`` within a block, by the file ``file``; its folder is made if need be.

    Raises:
      UserError: another process holds it.
    """

    def __init__(self, file: Path, output: Path, seconds: float = _SECONDS):
        self._file, self._output, self._seconds = file, output, seconds
        self._record = {"token": secrets.token_hex(8), "renewed": 0, "since": time.time()}
        self._record |= _identity(os.getpid())
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Claim":
        folder = self._file.parent
        self._folder_is_new = not is_remote(folder) and not folder.exists()
        if self._folder_is_new:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):  # a file, or a link to nothing
                raise UserError(f"{folder} cannot be made, a file is in the way") from None
        while not create(self._file, self._data()):
            if (holder := self._read()) is None:
                continue  # it was given back meanwhile
            if self._is_alive(holder):
                now = self._describe(self._read() or holder)
                raise UserError(f"{now}; wait for it or name another --output")
            print(f"{self._describe(holder)}, which has ended: taken over", file=sys.stderr)
            self._write()
            time.sleep(self._seconds / 10)  # another may have taken it over at the same time
            self.require_held()
            break
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._renewing.join()
        with contextlib.suppress(Exception):  # a claim that stays is seen to be stale
            if self._is_held():
                self._file.unlink(missing_ok=True)
        if self._folder_is_new:
            with contextlib.suppress(OSError):  # something has been written there
                self._file.parent.rmdir()

    def require_held(self) -> None:
        """Raises UserError where another process has taken the output over."""
        if not self._is_held():
            holder = self._describe(self._read() or {})
            raise UserError(f"{holder} and no more by this one, which stops and saves nothing more")

    def _is_held(self) -> bool:
        return (self._read() or {}).get("token") == self._record["token"]

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        """Returns whether the holder is at work, which takes a while to see from elsewhere."""
        if holder.get("place") == self._record["place"]:
            now = _identity(holder["pid"])
            return now == {key: holder[key] for key in now}
        seconds = self._seconds * _RENEWALS
        print(f"{self._describe(holder)}: {seconds:.0f} s to see if it works", file=sys.stderr)
        until = time.monotonic() + seconds
        while (now := self._read()) == holder and time.monotonic() < until:
            time.sleep(self._seconds / 5)
        return now is not None and now != holder

    def _renew(self) -> None:
        while not self._released.wait(self._seconds):
            with contextlib.suppress(Exception):  # a full disk, or a store that does not answer now
                if self._is_held():
                    self._record["renewed"] += 1
                    self._write()

    def _describe(self, holder: dict[str, Any]) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
        name = f"process {holder.get('pid')} on {holder.get('host')}, since {since}"
        return f"{self._output} is held by {name if holder else 'another process'}"

    def _data(self) -> bytes:
        return json.dumps(self._record).encode() + b"\n"

    def _read(self) -> dict[str, Any] | None:
        """Returns what the claim says; None where there is none, {} where it is half written."""
        try:
            return json.loads(read(self._file))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _write(self) -> None:
        if is_remote(self._file):
            self._file.write_bytes(self._data())
            return
        beside = self._file.with_name(f"{self._file.name}.{self._record['token']}")
        try:
            beside.write_bytes(self._data())
            os.replace(beside, self._file)
        finally:
            beside.unlink(missing_ok=True)


def _identity(pid: int) -> dict[str, Any]:
    """Returns what tells a process from all others: where it runs, and as what; as far as known.

    A machine's ``place`` is another after it was started anew, and so is a container's.
    """
    host = platform.node()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start = None if state in "ZX" else fields[18]  # dead, and only waited for by its parent
    except OSError:
        place, start = f"{host} {secrets.token_hex(8)}", None
    return {"host": host, "pid": pid, "place": place, "start": start}
