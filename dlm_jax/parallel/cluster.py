"""Which process this is, of how many, and where they meet, as the launcher's variables say it.

Only the standard library is imported, so that a command can look before JAX starts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from dlm_jax.errors import UserError

_TPU_PORT = 8482


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The place of this process among those of one run.

    Attributes:
        coordinator: 'host:port' of process 0; None = JAX asks the metadata server of the TPU pod
            for this and all the rest.
        num_processes: how many there are; 0 where `coordinator` is None.
        process_id: number of this one, from 0.
        source: what it was read from, for messages.
        local_device_ids: devices of the host that this process takes; None = all that it sees.
    """

    coordinator: str | None
    num_processes: int
    process_id: int
    source: str
    local_device_ids: tuple[int, ...] | None = None


def find_cluster(
    environment: Mapping[str, str],
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    tpu_pod: bool = False,
) -> Cluster | None:
    """Reads the first of: the flags, JAX's and Kubeflow's variables, Slurm's, those of TPUs on GKE.

    Args:
        environment: variables of the process.
        coordinator_address: flag 'host:port'.
        num_processes: flag.
        process_id: flag.
        tpu_pod: whether to ask the metadata server where no variable says anything, as on TPU
            machines outside Kubernetes.

    Returns:
        The cluster, or None for a process that is alone.

    Raises:
        UserError: naming the flag or variable that is missing, no number, or contradicts another.
    """
    flags = {
        "--coordinator_address": coordinator_address,
        "--num_processes": None if num_processes is None else str(num_processes),
        "--process_id": None if process_id is None else str(process_id),
    }
    if any(value is not None for value in flags.values()):
        given = {name: value for name, value in flags.items() if value is not None}
        found: Cluster | None = _triple(given, *flags, port=None)
    else:
        found = (
            _from_jax_variables(environment)
            or _from_kubeflow_training_operator(environment)
            or _from_slurm(environment)
            or _from_tpu_variables(environment)
        )
    if found is None and tpu_pod:
        return Cluster(None, 0, 0, "the metadata server of the TPU pod")
    return found if found is not None and found.num_processes > 1 else None


def _number(variables: Mapping[str, str], name: str, least: int = 0) -> int:
    text = variables[name]
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UserError(f"{name} is {text!r}, which is no whole number from {least} on")
    return value


def _triple(
    variables: Mapping[str, str], address: str, count: str, identity: str, *, port: str | None
) -> Cluster:
    """Reads the three values that say everything."""
    for name in (address, count, identity):
        if name not in variables:
            present = next(key for key in (count, identity, address) if key in variables)
            raise UserError(
                f"{present} is set and {name} is not: a run of several processes needs {address}, "
                f"{count} and {identity}"
            )
    total, mine = _number(variables, count, 1), _number(variables, identity)
    if mine >= total:
        raise UserError(
            f"{identity} is {mine}, but {count} is {total}: ids go from 0 to {total - 1}"
        )
    host = variables[address]
    if not re.search(r":\d+$", host):
        if port is None or port not in variables:
            needed = f" (or {port})" if port else ""
            raise UserError(f"{address} is {host!r}, without the port: write HOST:PORT{needed}")
        host = f"{host}:{_number(variables, port, 1)}"
    return Cluster(host, total, mine, f"{address}, {count} and {identity}")


def _from_jax_variables(environment: Mapping[str, str]) -> Cluster | None:
    """JAX's own names, which Kubeflow Trainer sets; in a JobSet the pods' indices give the id."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if not any(name in environment for name in names[1:]):
        if names[0] in environment and not _launched(environment):
            raise UserError(f"{names[0]} is set without {names[1]} and {names[2]}")
        return None
    variables = dict(environment)
    if names[2] not in variables and "JOB_COMPLETION_INDEX" in variables:
        # Pods of one job are numbered by Kubernetes; PROCESSES_IN_JOB tells jobs of a JobSet apart.
        index = _number(variables, "JOB_COMPLETION_INDEX")
        if "JOB_INDEX" in variables and "PROCESSES_IN_JOB" in variables:
            pods = _number(variables, "PROCESSES_IN_JOB", 1)
            if index >= pods:
                raise UserError(
                    f"JOB_COMPLETION_INDEX is {index}, but PROCESSES_IN_JOB is {pods}: ids go from "
                    f"0 to {pods - 1}"
                )
            index += _number(variables, "JOB_INDEX") * pods
        variables[names[2]] = str(index)
    found = _triple(variables, *names, port="JAX_COORDINATOR_PORT")
    slurm = _from_slurm(environment)
    if slurm is not None and 1 < slurm.num_processes != found.num_processes:
        raise UserError(
            f"JAX_NUM_PROCESSES is {found.num_processes}, but Slurm started "
            f"{slurm.num_processes} tasks: unset JAX_NUM_PROCESSES, or start as many"
        )
    return found


def _launched(environment: Mapping[str, str]) -> bool:
    """Whether another launcher says the rest."""
    return "SLURM_STEP_NODELIST" in environment or "TPU_WORKER_ID" in environment


def _from_kubeflow_training_operator(environment: Mapping[str, str]) -> Cluster | None:
    """The JAXJob of Kubeflow's first training operator; names so general that all must be there."""
    names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
    if not all(name in environment for name in names):
        return None
    return _triple(environment, *names, port="COORDINATOR_PORT")


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A task of `srun`; a script of `sbatch` itself is no such task."""
    count = next(
        (name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in environment), None
    )
    needed = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST")
    if count is None or not all(name in environment for name in needed):
        return None
    variables = {**environment, "coordinator": _slurm_coordinator(environment)}
    found = _triple(variables, "coordinator", count, "SLURM_PROCID", port=None)
    return dataclasses.replace(
        found,
        source=f"Slurm's {count}, SLURM_PROCID and SLURM_STEP_NODELIST",
        local_device_ids=_slurm_devices(environment),
    )


def _slurm_coordinator(environment: Mapping[str, str]) -> str:
    """The first node, and a port that all tasks derive from the job's number, as JAX does."""
    if "JAX_COORDINATOR_ADDRESS" in environment:
        address = environment["JAX_COORDINATOR_ADDRESS"]
        if re.search(r":\d+$", address):
            return address
    else:
        nodes = environment["SLURM_STEP_NODELIST"]
        match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
        if match is None:
            raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no node")
        address = match[1] + (match[2] or "")
    if "JAX_COORDINATOR_PORT" in environment:
        return f"{address}:{_number(environment, 'JAX_COORDINATOR_PORT', 1)}"
    # The range that systems hand out last to other programs.
    return f"{address}:{_number(environment, 'SLURM_JOB_ID') % 2**12 + 65536 - 2**12}"


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Each task its own GPU where several share a node that shows them all; else all of them."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    shared = any(int(number) > 1 for number in re.findall(r"(?:^|,)(\d+)", tasks))
    if not shared or "SLURM_LOCALID" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if visible is not None and "," not in visible:  # Slurm has bound one GPU to the task
        return None
    return (_number(environment, "SLURM_LOCALID"),)


def _from_tpu_variables(environment: Mapping[str, str]) -> Cluster | None:
    """What GKE gives the pods of a TPU slice, and of several slices in a JobSet."""
    hosts_name = next(
        (n for n in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES") if environment.get(n)), None
    )
    if hosts_name is None or "TPU_WORKER_ID" not in environment:
        return None
    hosts = environment[hosts_name].split(",")
    worker = _number(environment, "TPU_WORKER_ID")
    if worker >= len(hosts):
        raise UserError(f"TPU_WORKER_ID is {worker}, but {hosts_name} lists {len(hosts)} host(s)")
    slices, this_slice = 1, 0
    if environment.get("MEGASCALE_NUM_SLICES"):
        slices = _number(environment, "MEGASCALE_NUM_SLICES", 1)
        if slices > 1:
            for name in ("MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"):
                if name not in environment:
                    raise UserError(f"MEGASCALE_NUM_SLICES is {slices} and {name} is not set")
            this_slice = _number(environment, "MEGASCALE_SLICE_ID")
        if this_slice >= slices:
            raise UserError(
                f"MEGASCALE_SLICE_ID is {this_slice}, but MEGASCALE_NUM_SLICES is {slices}: ids go "
                f"from 0 to {slices - 1}"
            )
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    name, port = first.split(":")[0], environment.get("JAX_COORDINATOR_PORT", str(_TPU_PORT))
    return Cluster(
        f"{name}:{port}",
        len(hosts) * slices,
        worker + this_slice * len(hosts),
        f"{hosts_name} and TPU_WORKER_ID",
    )
