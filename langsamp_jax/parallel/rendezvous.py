"""Process 0 hears from every other process before the work starts, and until it ends.

JAX's own start-up aborts a process from C++, with a stack trace, where another one is late, and
notices a death by missed heartbeats only. So the processes meet here first, at the coordinator's
address: each says who it is, process 0 compares and answers. The connections stay open: one that
breaks means that its process is gone, and all others hear of it at once.
"""

import dataclasses
import errno
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from langsamp_jax.errors import UserError

_LAST_WORDS_SECONDS = 10.0  # process 0 waits so long for the others when the run fails
_PORT_SECONDS = 10.0  # a run that is just ending may hold the port so long
_IDENTITY_SECONDS = 5.0  # what connects and says nothing for so long is no process of ours
_PAUSE_SECONDS = 0.25
_GONE = "it is gone without a word (killed, or its machine is)"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Says which of how many processes this is, and where process 0 is (``host:port``)."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None  # None: all that JAX finds

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Rendezvous:
    """Holds the connections of a process: of process 0 to all others, of any other to process 0."""

    def __init__(self, cluster: Cluster, facts: dict[str, str], time_limit: float):
        """Waits until all processes are there.

        Args:
          facts: what must be the same everywhere, by name: versions.
          time_limit: in seconds.

        Raises:
          UserError: some processes are missing, or do not belong together.
        """
        self._number = cluster.process_id
        connect = _gather if self._number == 0 else _report
        self._connections = connect(cluster, facts, time_limit)
        self._ending = threading.Lock()
        for number in self._connections:
            threading.Thread(target=self._listen, args=(number,), daemon=True).start()

    def done(self) -> None:
        """Tells all others that this process ends as it should."""
        self._tell({"done": True})

    def fail(self, line: str, code: int) -> None:
        """Tells all other processes that this one ends, and why; they end with the same code."""
        if self._ending.acquire(blocking=False):
            self._tell({"process": self._number, "line": line, "code": code})
            self._outlive_others()
        else:
            time.sleep(_LAST_WORDS_SECONDS)  # another thread is ending this process

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in list(self._connections.values()):
            connection.send(message)

    def _listen(self, number: int) -> None:
        """Hears what process ``number`` says, and when it is gone."""
        connection, done = self._connections[number], False
        while message := connection.receive():
            if "done" in message:
                done = True
            else:
                self._end(message)
        self._connections.pop(number, None)
        if not done:
            self._end({"process": number, "line": _GONE, "code": 1})

    def _end(self, message: dict[str, Any]) -> None:
        """Ends this process at once, whatever its main thread is waiting for."""
        if self._ending.acquire(blocking=False):
            why = f"ends because of process {message['process']}: {message['line']}"
            print(f"langsamp: process {self._number}: {why}", file=sys.__stderr__, flush=True)
            self._connections.pop(message["process"], None)
            self._tell(message)
            self._outlive_others()
            os._exit(message["code"])

    def _outlive_others(self) -> None:
        """Waits, on process 0, until the others are gone.

        JAX's service ends with process 0, and aborts the processes that still need it.
        """
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while self._number == 0 and self._connections and time.monotonic() < deadline:
            time.sleep(0.01)


class _Connection:
    """Sends and receives messages, JSON objects of one line each, over a socket."""

    def __init__(self, connected: socket.socket):
        self.socket = connected
        self._lines = connected.makefile("r", encoding="utf-8")

    def send(self, message: dict[str, Any]) -> None:
        """Sends ``message``; if the other side is gone, ``receive`` shows it."""
        try:
            self.socket.sendall((json.dumps(message) + "\n").encode())
        except OSError:
            pass

    def receive(self) -> dict[str, Any] | None:
        """Returns the next message; None where there is none, or it is not of our kind."""
        try:
            message = json.loads(self._lines.readline())
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def is_open(self) -> bool:
        """Returns whether the other side is still there."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def _gather(cluster: Cluster, facts: dict[str, str], time_limit: float) -> dict[int, _Connection]:
    """Accepts, on process 0, one connection from each of the others."""
    present: dict[int, _Connection] = {}
    try:
        with _listen_at(cluster.address[1]) as server:
            deadline = time.monotonic() + time_limit
            while len(present) < cluster.num_processes - 1:
                server.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    connection = _Connection(server.accept()[0])
                except TimeoutError:
                    raise UserError(_missing(cluster, present, time_limit)) from None
                connection.socket.settimeout(_IDENTITY_SECONDS)
                identity = connection.receive()
                if identity is None or "process" not in identity:
                    connection.close()
                    continue
                connection.socket.settimeout(None)
                for gone in [n for n, other in present.items() if not other.is_open()]:
                    present.pop(gone).close()  # it may be started anew: here now, or yet to come
                if misfit := _misfit(cluster, facts, identity, present):
                    message = f"{misfit}: start all processes with the same command"
                    connection.send({"error": message})
                    raise UserError(message)
                present[identity["process"]] = connection
    except UserError as error:
        for connection in present.values():
            connection.send({"error": str(error)})
        raise
    for connection in present.values():
        connection.send({"go": True})
    return present


def _report(cluster: Cluster, facts: dict[str, str], time_limit: float) -> dict[int, _Connection]:
    """Connects any other process to process 0."""
    identity = {
        "process": cluster.process_id,
        "processes": cluster.num_processes,
        "facts": facts,
    }
    deadline, reason = time.monotonic() + time_limit, "no answer"
    while time.monotonic() < deadline:
        try:
            connected = socket.create_connection(cluster.address, timeout=_IDENTITY_SECONDS)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(_PAUSE_SECONDS)
            continue
        connection = _Connection(connected)
        connected.settimeout(time_limit + _PORT_SECONDS)  # process 0 may have started later
        # A port that nobody listens at can be given to the very socket that asks for it.
        answer = None
        if connected.getsockname() != connected.getpeername():
            connection.send(identity)
            answer = connection.receive()
        if answer and "go" in answer:
            connected.settimeout(None)
            return {0: connection}
        connection.close()
        if answer and "error" in answer:
            raise UserError(answer["error"])
        reason = "what answers there is no process 0 that waits for others"
        time.sleep(_PAUSE_SECONDS)
    raise UserError(
        f"no process 0 at the coordinator's address {cluster.coordinator} within {time_limit:g} s "
        f"({reason}): is the address stale, or process 0 not started?"
    )


def _listen_at(port: int) -> socket.socket:
    """Opens a socket that listens on every interface of this machine."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise UserError(
                    f"process 0 cannot listen at port {port} of the coordinator's address "
                    f"({error.strerror}); name another"
                ) from None
        time.sleep(_PAUSE_SECONDS)


def _missing(cluster: Cluster, present: dict[int, _Connection], time_limit: float) -> str:
    """Returns the line that says which processes have not come."""
    absent = [n for n in range(1, cluster.num_processes) if n not in present]
    shown = ", ".join(map(str, absent[:20])) + (", ..." if len(absent) > 20 else "")
    return (
        f"saw {len(present) + 1} of {cluster.num_processes} processes within {time_limit:g} s: "
        f"missing {shown} (not started, ended early, or cannot reach {cluster.coordinator})"
    )


def _misfit(
    cluster: Cluster,
    facts: dict[str, str],
    identity: dict[str, Any],
    present: dict[int, _Connection],
) -> str | None:
    """Returns why a process does not belong to this run, or None."""
    number, total = identity["process"], identity.get("processes")
    if total != cluster.num_processes:
        return f"process {number} is one of {total}, process 0 one of {cluster.num_processes}"
    if number == 0 or number in present:
        return f"two processes say that they are process {number}"
    for name, value in facts.items():
        if identity["facts"].get(name) != value:
            return (
                f"process {number} has {name} {identity['facts'].get(name)}, process 0 has {value}"
            )
    return None
