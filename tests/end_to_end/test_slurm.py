"""A real Slurm of two nodes on this host starts a run, and starts it again until it is done."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlm_jax.data.vocabularies import ByteVocabulary

HERE = Path(__file__).parent
JOB = HERE.parents[1] / "launch" / "train.sbatch"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
FIRST_STEPS, TOTAL_STEPS = 2, 400

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
    reason="needs root and Slurm's programs (slurm-wlm, munge)",
)

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=30
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host},{host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=4
PartitionName=main Nodes={host},{host}-2 Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _until(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.05)
    return found


class Cluster:
    """What is asked of a Slurm that has been started."""

    def __init__(self, configuration):
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(configuration),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }

    def __call__(self, *command, check=True):
        done = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def job(self, number):
        words = self("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    # Paths of sockets are short.
    root = Path("/tmp") / f"slurm-{os.getpid()}"
    for name in ("state", "spool"):
        (root / name).mkdir(parents=True)
    host = socket.gethostname()
    configuration = root / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, root=root, ports=_free_ports(3)), encoding="utf-8"
    )
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}"]
        + [f"--{option}={root}/munge.{name}" for option, name in files.items()],
        ["slurmctld", "-D", "-f", str(configuration)],
        *(["slurmd", "-D", "-f", str(configuration), "-N", node] for node in (host, f"{host}-2")),
    ]
    cluster, started = Cluster(configuration), []
    try:
        for daemon in daemons:
            log = (root / f"{daemon[0]}-{len(started)}.log").open("w")
            started.append(
                subprocess.Popen(
                    daemon, env=cluster.environment, stdout=log, stderr=log, start_new_session=True
                )
            )
            time.sleep(1)
        _until(lambda: cluster("sinfo", "--noheader", "-o", "%t %D").split() == ["idle", "2"], 60)
        yield cluster
    finally:
        cluster("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def _steps(run):
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [e["step"] for e in map(json.loads, lines) if e["split"] == "train"]


def _tasks(number):
    """Process ids of the tasks of a job, by their place in the run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
            if f"SLURM_JOB_ID={number}".encode() in variables and b"python" in command:
                [place] = [v[13:] for v in variables if v.startswith(b"SLURM_PROCID=")]
                found[int(place)] = int(folder.name)
    return found


def test_a_job_is_stopped_then_loses_a_process_and_ends_where_it_should(slurm, tmp_path):
    ByteVocabulary().save(tmp_path / "vocabulary")
    run, log = tmp_path / "run", tmp_path / "log"
    bindings = (
        f"VOCABULARY='{tmp_path / 'vocabulary'}'",
        f"TOTAL_STEPS={TOTAL_STEPS}",
        "SAVE_EVERY=50",
        "LOG_EVERY=1",
        "LENGTH=32",
        "EncoderConfig.num_layers=1",
    )
    number = slurm(
        *("sbatch", "--parsable", "--nodes=2", f"--output={log}", JOB),
        *(f"--gin_file={HERE / 'toy.gin'}", f"--import={HERE / 'toy_tasks.py'}"),
        *(f"--run_dir={run}", *(f"--gin.{binding}" for binding in bindings)),
    ).strip()

    def started_again(times):
        job = slurm.job(number)
        assert job["JobState"] not in ("FAILED", "CANCELLED"), log.read_text()[-3000:]
        if job["Restarts"] != str(times) or job["JobState"] == "COMPLETING":
            return False
        # Slurm keeps a job that was put back waiting for a while.
        slurm("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
        return job["JobState"] == "RUNNING"

    _until(lambda: len(_steps(run)) >= FIRST_STEPS)
    slurm("scancel", "--signal=TERM", number)
    _until(lambda: started_again(1))
    assert log.read_text().count("is saved, and the same command goes on") == 2
    saved = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    assert f"step {saved} is saved" in log.read_text()

    _until(lambda: _steps(run)[-1:] > [saved + FIRST_STEPS])
    os.kill(_tasks(number)[1], signal.SIGKILL)
    _until(lambda: started_again(2))
    assert "exit code 137" in log.read_text() or "Killed" in log.read_text()
    assert "lost another process of the run" in log.read_text()

    _until(lambda: slurm.job(number)["JobState"] == "COMPLETED")
    assert _steps(run) == list(range(1, TOTAL_STEPS + 1))
    assert f"resumes after step {saved}" in log.read_text()
