"""The JobSet starts again what the exit codes of a run say, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dlm_jax.cli import flags, train
from dlm_jax.config.files import read_program
from dlm_jax.errors import EXIT_FAILED, EXIT_RETRY, EXIT_USER_ERROR
from dlm_jax.parallel.cluster import find_cluster

FILE = Path(__file__).parents[2] / "launch" / "jobset.yaml"


@pytest.fixture
def spec():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(FILE.read_text())["spec"]


@pytest.fixture
def job(spec):
    [replicated] = spec["replicatedJobs"]
    return replicated["template"]["spec"]


def test_only_what_would_come_again_ends_it(spec, job):
    [rule] = job["podFailurePolicy"]["rules"]
    [container] = job["template"]["spec"]["containers"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"]) == ("FailJob", "In")
    assert sorted(codes["values"]) == [EXIT_FAILED, EXIT_USER_ERROR]
    assert EXIT_RETRY not in codes["values"]
    assert codes["containerName"] == container["name"]
    # Kubernetes must not restart a pod by itself: its neighbours would be left in another run.
    assert (job["template"]["spec"]["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    [failure] = spec["failurePolicy"]["rules"]
    assert failure == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_hosts_and_chips_are_those_of_the_slice(job):
    pod = job["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    [container] = pod["containers"]
    hosts = job["completions"]
    assert hosts == job["parallelism"]
    assert hosts * container["resources"]["limits"]["google.com/tpu"] == chips
    names = ",".join(f"dlm-train-slice-0-{host}.dlm-train" for host in range(hosts))
    cluster = find_cluster({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": names})
    assert (cluster.num_processes, cluster.process_id) == (hosts, 1)


def test_its_command_is_one_of_ours(job):
    [container] = job["template"]["spec"]["containers"]
    assert container["command"] == ["dlm", "train"]
    arguments = flags.parse("train", "", train.add_arguments, container["args"])
    assert read_program(arguments.gin_file, [], []).bindings
    [mount] = container["volumeMounts"]
    assert arguments.run_dir.startswith(f"{mount['mountPath']}/")
