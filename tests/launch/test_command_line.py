"""What can be typed, what is refused, and what a dry run prints."""

import shutil
import subprocess

import pytest
import yaml

pytestmark = pytest.mark.slow

TPU = ("tpu", "--zone", "z", "--accelerator", "v5e:4x4")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "nothing is no back end; known are local, tpu, slurm and gke"),
        (("tpus",), "tpus is no back end; known are local, tpu, slurm and gke"),
        (
            ("tpu", "start", "--zone", "z"),
            "no action start, but up, create, setup, run, logs, delete",
        ),
        (("local", "--nodes", "2", "--", "true"), "local does not know --nodes, but --name"),
        (("local", "--processes"), "--processes needs a value"),
        (("local", "--processes", "--", "true"), "--processes needs a value"),
        (("local", "--processes", "two", "--", "true"), "--processes two: a whole number"),
        (("local", "--processes", "a[$(touch x)]", "--", "true"), "a[$(touch x)]: a whole number"),
        (("local", "--processes", "0", "--", "true"), "--processes 0: a whole number, at least 1"),
        (("local", "--", "true"), "local run needs --processes"),
        (("local", "--processes", "2"), "no command; it comes behind --"),
        (("local", "--processes", "2", "--"), "no command; it comes behind --"),
        (("local", "--processes", "2", "--", "langsmap"), "langsmap is not on the PATH"),
        (("local", "--processes", "2", "--logs", "/dev/null/x", "--", "true"), "/dev/null/x"),
        (("tpu", "delete"), "tpu delete needs --zone"),
        (("tpu", "delete", "--zone", "z", "--name", "My_Pod"), "--name My_Pod: lower-case"),
        (("slurm", "--", "true"), "slurm run needs --nodes"),
        (("slurm", "--nodes", "0", "--", "true"), "--nodes 0: a whole number, at least 1"),
        (("gke", "--accelerator", "v5e:4x4", "--", "true"), "gke run needs --image"),
        (("gke", "--image", "i", "--", "true"), "gke run needs --accelerator"),
        (("gke", "--image", "i", "--accelerator", "v9:4x4", "--", "true"), "v4, v5e, v5p or v6e"),
        (("gke", "--image", "i", "--accelerator", "v5e", "--", "true"), "a topology, as v5e:4x4"),
        (("gke", "--image", "i", "--accelerator", "v5e:2x3", "--", "true"), "v5e:2x3"),
    ],
    ids=str,
)
def test_refused_in_one_line(launcher, arguments, message):
    (launcher.folder / "cloud" / "account").write_text("someone")
    (launcher.folder / "cloud" / "project").write_text("a-project")
    assert message in launcher.refused(*arguments)
    assert not (launcher.folder / "x").exists()
    assert not list((launcher.folder / "cluster").iterdir())


def test_help(launcher):
    for arguments in (("--help",), ("-h",)):
        text = launcher.run(*arguments).stdout
        for backend in ("local", "tpu", "slurm", "gke"):
            assert f"./launch_tpu.sh {backend} " in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("local", "--processes", "2", "--logs", "there"),
        (*TPU, "--spot"),
        (*TPU, "--queued"),
        ("slurm", "--nodes", "2", "--gpus_per_node", "8"),
        ("gke", "--accelerator", "v5e:4x4", "--image", "i"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_dry_run_needs_no_tool_and_does_nothing(launcher, arguments):
    for tool in ("gcloud", "sbatch", "kubectl"):
        (launcher.folder / "tools" / tool).unlink()
    before = sorted(launcher.folder.rglob("*"))
    ended = launcher.run(*arguments, "--", "langsamp", "train", "a b", DRY_RUN="1")
    assert sorted(launcher.folder.rglob("*")) == before
    assert ended.stderr == ""
    printed = ended.stdout
    syntax = subprocess.run(["bash", "-n"], input=printed, text=True, capture_output=True)
    if arguments[0] == "gke":
        (jobset,) = yaml.safe_load_all(printed)
        assert jobset["kind"] == "JobSet"
    else:
        assert syntax.returncode == 0, syntax.stderr
    expected = {
        "local": ["JAX_PROCESS_ID=0 langsamp train a\\ b", "JAX_PROCESS_ID=1 langsamp train a\\ b"],
        "tpu": [" describe ", " create ", " scp ", "setsid", " delete "],
        "slurm": ["#SBATCH --requeue", "srun", "# into: sbatch"],
        "gke": ["# into: kubectl apply"],
    }
    places = [printed.index(part) for part in expected[arguments[0]]]
    assert places == sorted(places)


def test_shellcheck(launcher):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(["shellcheck", str(launcher.script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "shellcheck disable" not in launcher.script.read_text()
