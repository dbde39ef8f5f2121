"""Several processes that train as one: how they find each other, agree, and end together."""

import contextlib
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import langsamp_jax
from langsamp_jax.errors import UserError
from langsamp_jax.parallel.rendezvous import Cluster, Rendezvous
from langsamp_jax.parallel.signals import Stopped

_HEARTBEAT_SECONDS = 60  # a machine that vanishes without closing its connections
_SHUTDOWN_SECONDS = 60
_HEAR_FIRST_SECONDS = 2.0


def find_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None, time_limit: float
) -> Cluster | None:
    """Returns what the arguments say, else ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``, else what JAX finds on a TPU pod, under Slurm, Open MPI or in a Kubernetes
    Job; None where this process is alone.

    Raises:
      UserError: only a part is given, or the numbers do not fit.
    """
    names = "--coordinator", "--num_processes", "--process_id"
    given = dict(zip(names, (coordinator, num_processes, process_id), strict=True))
    if all(value is None for value in given.values()):
        names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
        given = {name: os.environ.get(name) for name in names}
        if given["JAX_NUM_PROCESSES"] is None and given["JAX_PROCESS_ID"] is None:
            return _detected(time_limit)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: {', '.join(given)} go together")
    address = given[names[0]]
    total, number = (_whole(name, given[name]) for name in names[1:])
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"{names[0]} {address}: expected HOST:PORT")
    if not 0 <= number < total:
        raise UserError(f"{names[2]} {number}: expected 0 to {total - 1}, with {names[1]} {total}")
    return Cluster(address, total, number) if total > 1 else None


def _whole(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} {value}: expected a whole number") from None


def _detected(time_limit: float) -> Cluster | None:
    # JAX has no public way of asking without joining; a machine that is alone must not join.
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
    from jax._src.clusters import ClusterEnv

    for method in ClusterEnv._cluster_types:
        in_kubernetes = method.__name__ == "K8sCluster"
        if method.opt_in_only_method or (
            in_kubernetes and "JOB_COMPLETION_INDEX" not in os.environ
        ):
            continue  # a pod that is not one of an indexed Job is alone
        try:
            if not method.is_env_present():
                continue
            if (total := method.get_process_count()) < 2:
                return None
            address = os.environ.get("JAX_COORDINATOR_ADDRESS") or method.get_coordinator_address(
                timeout_secs=int(time_limit),
                override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
            )
            local = None if running_in_cloud_tpu_vm else method.get_local_process_id()
            if "JAX_LOCAL_DEVICE_IDS" in os.environ or local is None:
                devices = None
            else:
                devices = [local]
            return Cluster(address, total, method.get_process_id(), devices)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the other processes cannot be found as {method.__name__} finds them ({reason}); "
                "give --coordinator, --num_processes and --process_id"
            ) from error
    return None


@contextlib.contextmanager
def cluster_session(
    cluster: Cluster | None,
    time_limit: float,
    ending: Callable[[BaseException], tuple[int, str] | None],
) -> Iterator[None]:
    """Makes one of the processes of ``cluster`` within the block; None: this process is alone.

    Only process 0 speaks; what makes a process fail is said by that process, and the others end
    with it. An exception other than ``Stopped``, which reaches all processes at the same step,
    ends this process at the end of the block: JAX would wait for the others at exit.

    Args:
      time_limit: seconds to wait for all processes.
      ending: the exit code and line of an exception; None for one that keeps its traceback.

    Raises:
      UserError: some processes are missing, or do not belong together.
    """
    if cluster is None:
        yield
        return
    rendezvous = Rendezvous(cluster, _versions(), time_limit)
    # JAX's own listener for SIGTERM would come after ours and be overridden by it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        cluster.local_device_ids,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    if cluster.process_id > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        yield
    except Stopped:
        rendezvous.done()
        raise
    except BaseException as error:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        status = ending(error)
        if status is None:
            time.sleep(_HEAR_FIRST_SECONDS)  # if another is gone, this one ends here, in one line
            traceback.print_exc()
            status = 1, f"{type(error).__name__}: {error}"
        code, line = status
        print(f"langsamp: process {cluster.process_id}: {line}", file=sys.stderr)
        rendezvous.fail(line, code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    else:
        rendezvous.done()


def _versions() -> dict[str, str]:
    """Returns what must be the same for every process to compute the same step."""
    code = (
        f"{langsamp_jax.__version__} (code {code_digest(Path(langsamp_jax.__file__).parent)[:12]})"
    )
    return {"langsamp_jax": code, "jax": jax.__version__, "NumPy": np.__version__}


def code_digest(package: Path) -> str:
    """Returns the SHA-256 of all Python files below the folder of a package, names and bytes."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(package).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def is_primary() -> bool:
    """Returns whether this process writes and speaks for all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes; the name is the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(number: int) -> int:
    """Returns the number that process 0 has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def require_same(facts: Mapping[str, Any]) -> None:
    """Raises UserError, on all processes, where one has other ``facts`` than process 0."""
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, _gathered(json.dumps(facts, default=str)))
    for number, theirs in enumerate(others, 1):
        for name in facts:
            if theirs.get(name) != first.get(name):
                raise UserError(
                    f"process {number} has {name} = {theirs.get(name)!r}, process 0 has "
                    f"{first.get(name)!r}: start all processes with the same command"
                )


def _gathered(text: str) -> list[str]:
    """Returns the texts of all processes, by their numbers."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data))))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def compile_with_barrier(function: jax.stages.Wrapped) -> Callable[..., Any]:
    """Returns ``function``; its first call waits until all processes have compiled it.

    A process that has it from the compilation cache must not wait inside a collective for one
    that compiles: on CPUs that fails after 30 s.
    """
    if jax.process_count() == 1:
        return function
    waiting = ["compiled"]

    def together(*arguments: Any) -> Any:
        if waiting:
            function.lower(*arguments).compile()  # kept: the call below does not compile again
            barrier(waiting.pop())
        return function(*arguments)

    return together


class AllReduceMax:
    """Finds the largest of the numbers that the processes give at each step, one step later.

    It travels behind the step on the devices, so nobody waits for it, and all processes read the
    same number at the same step, whenever it was given.
    """

    def __init__(self, mesh: Mesh):
        self._places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._largest = jax.jit(lambda numbers: numbers.max(), out_shardings=everywhere)
        self._previous = None

    def __call__(self, number: int) -> int:
        """Gives ``number`` for this step; returns the largest of the previous one."""
        if jax.process_count() == 1:
            return number
        largest = 0 if self._previous is None else int(self._previous)
        local = np.full(jax.local_device_count(), number, np.int32)
        numbers = jax.make_array_from_process_local_data(self._places, local)
        self._previous = self._largest(numbers)
        return largest
