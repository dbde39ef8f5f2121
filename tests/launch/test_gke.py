"""The JobSet that is applied, and what its rules make of the ends of its pods."""

import subprocess

import pytest
import yaml

pytestmark = pytest.mark.slow

RUN = ("gke", "--name", "pod", "--accelerator", "v5e:4x4", "--image", "registry/langsamp:1")


def applied(launcher) -> dict:
    return yaml.safe_load((launcher.folder / "cluster" / "manifest").read_text())


def run_jobset(launcher, jobset: dict) -> tuple[str, int]:
    """The rules of JobSet: how it ends, and how often everything was started again."""
    policy = jobset["spec"]["failurePolicy"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    (pod_rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    for restarts in range(policy["maxRestarts"] + 1):
        pods = [
            subprocess.Popen(
                container["command"],
                env={**launcher.environment, "JOB_COMPLETION_INDEX": str(index)},
            )
            for index in range(job["parallelism"])
        ]
        launcher.started += pods
        codes = [pod.wait() for pod in pods]
        if not any(codes):
            return "Completed", restarts
        if set(codes) & set(pod_rule["onExitCodes"]["values"]):
            assert (pod_rule["action"], pod_rule["onExitCodes"]["operator"]) == ("FailJob", "In")
            assert policy["rules"] == [
                {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
            ]
            return "Failed", restarts
    return "Failed", restarts


def test_the_manifest(launcher):
    arguments = [
        "a b",
        'quo"te',
        "back\\slash",
        "it's",
        "two\nlines",
        "tab\t",
        "$(touch x)",
        "#",
        "",
    ]
    launcher.run(*RUN, "--grace", "30", "--", "langsamp", "train", *arguments)
    jobset = applied(launcher)
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "pod")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert pod["terminationGracePeriodSeconds"] == 30
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["langsamp", "train", *arguments]
    assert container["image"] == "registry/langsamp:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    "accelerator, kind, hosts, chips",
    [
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("v6e:16x16", "tpu-v6e-slice", 64, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
    ],
)
def test_slices(launcher, accelerator, kind, hosts, chips):
    launcher.run("gke", "--accelerator", accelerator, "--image", "i", "--spot", "--", "true")
    job = applied(launcher)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == hosts
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == kind
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize(
    "plan, end, restarts",
    [
        ({"0/*": 0}, "Completed", 0),
        ({"0/1": 75, "0/*": 1, "1/0": "kill", "1/*": 1, "2/*": 0}, "Completed", 2),
        ({"0/2": 2, "0/*": 1}, "Failed", 0),
        ({"0/*": 1, "1/*": 75, "2/*": 1}, "Failed", 2),
    ],
    ids=["finishes", "is preempted", "a user's mistake", "too many restarts"],
)
def test_restarts(launcher, plan, end, restarts):
    launcher.run(*RUN, "--max_restarts", "2", "--", *launcher.worker(plan))
    assert run_jobset(launcher, applied(launcher)) == (end, restarts)
    assert launcher.starts(4) == [restarts + 1] * 4


def test_actions_and_their_order(launcher):
    launcher.run(*RUN, "--namespace", "ours", "--", "true")
    launcher.run("gke", "logs", "--name", "pod")
    launcher.run("gke", "delete", "--name", "pod", "--namespace", "ours")
    assert (launcher.folder / "cluster" / "calls").read_text().splitlines() == [
        "kubectl --namespace=ours apply --filename=-",
        "kubectl logs --selector=jobset.sigs.k8s.io/jobset-name=pod --follow --prefix --tail=-1 "
        "--max-log-requests=1024",
        "kubectl --namespace=ours delete jobset pod",
    ]


def test_without_jobset_cluster_or_tool(launcher):
    cluster = launcher.folder / "cluster"
    (cluster / "bare").touch()
    assert "has no JobSet" in launcher.refused(*RUN, "--", "true")
    (cluster / "unreachable").touch()
    assert "get-credentials" in launcher.refused(*RUN, "--", "true")
    (launcher.folder / "tools" / "kubectl").unlink()
    assert "kubectl is not on the PATH" in launcher.refused(*RUN, "--", "true")
    assert not (cluster / "calls").exists()
