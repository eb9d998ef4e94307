"""The variables of every launcher give one answer; contradictions among them give a sentence."""

from __future__ import annotations

import pytest

from dlm_jax.errors import UserError
from dlm_jax.parallel.cluster import find_cluster

SLURM = {
    "SLURM_JOB_ID": "4101",
    "SLURM_STEP_NODELIST": "node[007-008],big1",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "first:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.job,w-1.job", "TPU_WORKER_ID": "1"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "s-0.job",
}


@pytest.mark.parametrize(
    ("environment", "coordinator", "count", "identity"),
    [
        (JAX, "first:1234", 2, 1),
        # Kubeflow Trainer gives the port apart.
        (
            {**JAX, "JAX_COORDINATOR_ADDRESS": "first", "JAX_COORDINATOR_PORT": "99"},
            "first:99",
            2,
            1,
        ),
        # Pods of a JobSet: two jobs of four.
        (
            {
                "JAX_COORDINATOR_ADDRESS": "first:1",
                "JAX_NUM_PROCESSES": "8",
                "JOB_COMPLETION_INDEX": "3",
                "JOB_INDEX": "1",
                "PROCESSES_IN_JOB": "4",
            },
            "first:1",
            8,
            7,
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "first:1",
                "JAX_NUM_PROCESSES": "4",
                "JOB_COMPLETION_INDEX": "3",
            },
            "first:1",
            4,
            3,
        ),
        (
            {
                "COORDINATOR_ADDRESS": "job-worker-0",
                "COORDINATOR_PORT": "6666",
                "NUM_PROCESSES": "3",
                "PROCESS_ID": "0",
            },
            "job-worker-0:6666",
            3,
            0,
        ),
        (SLURM, "node007:61445", 3, 2),  # 4101 % 4096 + 61440
        ({**SLURM, "SLURM_STEP_NODELIST": "a,b"}, "a:61445", 3, 2),
        ({**SLURM, "JAX_COORDINATOR_PORT": "5"}, "node007:5", 3, 2),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "ib0:7"}, "ib0:7", 3, 2),
        ({**SLURM, **JAX, "JAX_NUM_PROCESSES": "3"}, "first:1234", 3, 1),
        (GKE, "w-0.job:8482", 2, 1),
        ({**GKE, **SLICES}, "s-0.job:8482", 4, 3),
    ],
)
def test_what_each_launcher_says(environment, coordinator, count, identity):
    found = find_cluster(environment)
    assert (found.coordinator, found.num_processes, found.process_id) == (
        coordinator,
        count,
        identity,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # an sbatch script
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {**JAX, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"NUM_PROCESSES": "4"},  # anyone's variable
    ],
)
def test_a_process_that_is_alone_waits_for_nobody(environment):
    assert find_cluster(environment) is None


def test_flags_win_and_a_tpu_pod_is_asked_last():
    flags = {"coordinator_address": "here:1", "num_processes": 5, "process_id": 4}
    assert find_cluster({**SLURM, **JAX, "JAX_NUM_PROCESSES": "3"}, **flags).process_id == 4
    assert find_cluster({}, tpu_pod=True).coordinator is None
    assert find_cluster(GKE, tpu_pod=True).coordinator == "w-0.job:8482"


@pytest.mark.parametrize(
    ("tasks", "visible", "devices"),
    [
        ("4(x2)", None, (2,)),  # four tasks share a node of four GPUs
        ("4(x2)", "0,1,2,3", (2,)),
        ("4(x2)", "2", None),  # Slurm has bound one already
        ("1(x2)", "0,1,2,3", None),  # one task for all of a node's GPUs
    ],
)
def test_gpus_of_slurm_tasks(tasks, visible, devices):
    environment = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": "2"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    assert find_cluster(environment).local_device_ids == devices


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({**JAX, "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2, but JAX_NUM_PROCESSES is 2"),
        ({**JAX, "JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID is 'one', which is no whole number"),
        ({**JAX, "JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is '0'"),
        (
            {**JAX, "JAX_COORDINATOR_ADDRESS": "first"},
            "JAX_COORDINATOR_ADDRESS is 'first', without",
        ),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set and JAX_COORDINATOR_ADDRESS is not"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "is set without JAX_NUM_PROCESSES"),
        ({**SLURM, **JAX}, "JAX_NUM_PROCESSES is 2, but Slurm started 3 tasks"),
        ({**SLURM, "SLURM_PROCID": "3"}, "SLURM_PROCID is 3, but SLURM_STEP_NUM_TASKS is 3"),
        ({**GKE, "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID is 2, but TPU_WORKER_HOSTNAMES lists 2"),
        ({**GKE, **SLICES, "MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID is 2"),
        ({**GKE, "MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_SLICE_ID is not set"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "first:1",
                "JAX_NUM_PROCESSES": "8",
                "JOB_COMPLETION_INDEX": "4",
                "JOB_INDEX": "0",
                "PROCESSES_IN_JOB": "4",
            },
            "JOB_COMPLETION_INDEX is 4, but PROCESSES_IN_JOB is 4",
        ),
    ],
)
def test_contradictions_name_the_variable(environment, sentence):
    with pytest.raises(UserError) as caught:
        find_cluster(environment)
    assert sentence in str(caught.value)


def test_half_of_the_flags():
    with pytest.raises(UserError, match="--process_id is not"):
        find_cluster({}, coordinator_address="a:1", num_processes=2)
