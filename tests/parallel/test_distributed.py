"""Which processes belong together is found in the arguments, the environment or the cluster."""

import os
import signal
import sys
import types
from pathlib import Path

import jax
import pytest
from jax._src import cloud_tpu_init
from jax._src.clusters import cloud_tpu_cluster

import langsamp_jax
from langsamp_jax.cli.main import exit_status
from langsamp_jax.errors import UserError
from langsamp_jax.parallel.distributed import (
    AllReduceMax,
    broadcast_from_primary,
    code_digest,
    find_cluster,
    require_same,
)
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.rendezvous import Cluster
from langsamp_jax.parallel.signals import Stopped

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-004,7]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def found(monkeypatch, environment: dict[str, str], *given: object) -> Cluster | None:
    for name in list(os.environ):
        if name.startswith(("JAX_COORD", "JAX_NUM", "JAX_PROCESS", "SLURM", "OMPI", "KUBERNETES")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return find_cluster(*(given or (None, None, None)), time_limit=1)


def test_arguments_come_first(monkeypatch):
    environment = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "9", **SLURM}
    assert found(monkeypatch, environment, "a:1", 4, 3) == Cluster("a:1", 4, 3)


def test_the_environment_comes_before_what_is_found(monkeypatch):
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    given = dict(zip(names, ("b:2", "9", "0"), strict=True))
    assert found(monkeypatch, {**SLURM, **given}) == Cluster("b:2", 9, 0)


def test_an_address_may_be_of_ipv6(monkeypatch):
    cluster = found(monkeypatch, {}, "[2001:db8::1]:1234", 2, 1)
    assert cluster.address == ("2001:db8::1", 1234)


def test_one_process_is_alone(monkeypatch):
    assert found(monkeypatch, {}) is None
    assert found(monkeypatch, {}, "a:1", 1, 0) is None
    assert found(monkeypatch, {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert found(monkeypatch, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


def test_slurm(monkeypatch):
    assert found(monkeypatch, SLURM) == Cluster("node003:61441", 8, 5, [1])
    own = {"JAX_COORDINATOR_ADDRESS": "c:3", "JAX_LOCAL_DEVICE_IDS": "0,1"}
    assert found(monkeypatch, {**SLURM, **own}) == Cluster("c:3", 8, 5)


def test_open_mpi(monkeypatch):
    environment = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    }
    cluster = found(monkeypatch, environment)
    assert cluster.coordinator.startswith("10.96.0.1:")
    assert (cluster.num_processes, cluster.process_id) == (2, 1)


def test_tpu_pod_of_kubernetes(monkeypatch):
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    names = {"TPU_WORKER_HOSTNAMES": "localhost,w1,w2,w3", "TPU_WORKER_ID": "2"}
    environment = {**names, "MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
    skip = {"TPU_SKIP_MDS_QUERY": "1", "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
    cluster = found(monkeypatch, {**environment, **skip})
    assert cluster == Cluster("localhost:8482", 4, 2)


def test_a_kubernetes_job_that_cannot_be_read_is_one_line(monkeypatch):
    def refuse() -> None:
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears\nthat")

    stand_in = types.ModuleType("kubernetes")
    stand_in.config = types.SimpleNamespace(load_incluster_config=refuse)
    monkeypatch.setitem(sys.modules, "kubernetes", stand_in)
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    with pytest.raises(UserError, match=r"K8sCluster.*403 - Forbidden It appears that.*--coord"):
        found(monkeypatch, environment)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", 4, None), "--process_id missing: --coordinator, --num_processes, --process_id go"),
        ((None, None, 1), "--coordinator, --num_processes missing"),
        (("a", 4, 1), "--coordinator a: expected HOST:PORT"),
        (("a:99999", 4, 1), "--coordinator a:99999: expected HOST:PORT"),
        (("a:1", 4, 4), "--process_id 4: expected 0 to 3, with --num_processes 4"),
        (("a:1", 0, 0), "--process_id 0: expected 0 to -1, with --num_processes 0"),
    ],
)
def test_arguments_that_do_not_fit(monkeypatch, given, message):
    with pytest.raises(UserError) as raised:
        found(monkeypatch, {}, *given)
    assert str(raised.value).startswith(message)


def test_an_environment_that_does_not_fit(monkeypatch):
    with pytest.raises(UserError, match=r"^JAX_PROCESS_ID missing: JAX_COORDINATOR_ADDRESS, "):
        found(monkeypatch, {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"})
    names = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "one", "JAX_NUM_PROCESSES": "2"}
    with pytest.raises(UserError, match=r"^JAX_PROCESS_ID one: expected a whole number"):
        found(monkeypatch, names)


def test_a_process_that_is_alone_agrees_with_itself_at_once():
    agreed = AllReduceMax(make_mesh(MeshConfig()))
    assert [agreed(number) for number in (0, 15, 2)] == [0, 15, 2]
    assert broadcast_from_primary(7) == 7
    require_same({"anything": object()})
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Stopped(7, signal.SIGTERM), 75),
        (Stopped(7, signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
        (UserError("x"), 2),
        (FileNotFoundError(2, "No such file", "x"), 2),
        (RuntimeError("RESOURCE_EXHAUSTED: ..."), 2),
    ],
)
def test_the_exit_code_says_whether_to_start_again(error, expected):
    assert exit_status(error)[0] == expected


def test_a_defect_keeps_its_traceback():
    assert exit_status(ValueError("x")) is None and exit_status(SystemExit(0)) is None


def test_the_digest_of_the_code_notices_a_change_in_any_room(tmp_path):
    package = Path(langsamp_jax.__file__).parent
    rooms = sorted(file.parent.relative_to(package) for file in package.rglob("__init__.py"))
    assert len(rooms) > 10
    for file in package.rglob("*.py"):
        copy = tmp_path / file.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    same = code_digest(package)
    assert code_digest(tmp_path) == same
    for room in rooms:
        file = tmp_path / room / "__init__.py"
        content = file.read_bytes()
        file.write_bytes(content + b"#")
        assert code_digest(tmp_path) != same, room
        file.write_bytes(content)
    (tmp_path / "io" / "files.py").rename(tmp_path / "io" / "other.py")
    assert code_digest(tmp_path) != same
