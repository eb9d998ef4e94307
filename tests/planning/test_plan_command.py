"""`dlm plan` as users call it: real compilations of the real step for TPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra [plan])"
)
TINY = ("--gin_file=runs/adapt.gin", "--model=test", "--gin.LENGTH=64", "--gin.BATCH_SIZE=8")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    # The devices of a plan are its own, and no verdict is kept from an earlier run of the tests.
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return kept | {"DLM_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def dlm_plan(environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "dlm_jax.cli", "plan", *flags],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        assert done.returncode == code, done.stderr
        return done

    return call


@needs_libtpu
def test_a_step_on_a_slice(dlm_plan) -> None:
    done = dlm_plan(*TINY, "--topology=v5e:2x2", "--mesh=fsdp=4", "--json")
    plan = json.loads(done.stdout)
    assert plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert (plan["verdict"], plan["devices"], plan["rows"]) == ("fits", 4, 16)
    # Three float32 numbers for each parameter, split four ways, but for what is too small to split.
    assert 12 * plan["parameters"] / 4 <= plan["state_bytes"] < 1.1 * 12 * plan["parameters"] / 4
    assert plan["state_bytes"] < plan["peak_bytes"] < plan["usable_bytes"] == 15.75 * 2**30
    assert plan["parameter_bytes"] == pytest.approx(plan["state_bytes"] / 3, rel=0.01)
    kinds = {item["kind"] for item in plan["collectives"]}
    assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}
    assert 0 < plan["roofline"]["mfu_without_overlap"] <= plan["roofline"]["mfu_with_overlap"] <= 1


@needs_libtpu
def test_a_sampling_step_holds_parameters_and_no_optimizer(dlm_plan) -> None:
    flags = ("--gin_file=runs/evaluate.gin", "--model=test", "--topology=v5e:2x2", "--json")
    plan = json.loads(dlm_plan(*flags, "--mesh=fsdp=4").stdout)
    assert (plan["step"], plan["verdict"], plan["batch_size"]) == ("sampling", "fits", 64)
    assert plan["parameters"] <= plan["state_bytes"] == plan["parameter_bytes"]
    assert plan["parameter_bytes"] < 1.1 * 4 * plan["parameters"] / 4


@needs_libtpu
def test_what_does_not_fit_says_so_with_its_bytes_and_exits_with_1(dlm_plan) -> None:
    flags = ("--gin_file=runs/adapt.gin", "--model=xxl", "--gin.BATCH_SIZE=4", "--mesh=fsdp=4")
    done = dlm_plan(*flags, "--topology=v5e:2x2", code=1)
    assert done.stdout.splitlines()[-1].split() == ["verdict", "does", "not", "fit"]
    state = next(line for line in done.stdout.splitlines() if line.startswith("state"))
    needed = next(line for line in done.stdout.splitlines() if line.startswith("memory"))
    assert "29.94 GiB" in state or "29.93 GiB" in state
    assert float(needed.split()[1]) > 29.9 and "of 15.75 GiB usable" in needed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "dlm plan needs --topology, such as --topology=v5e:4x4, or --search"),
        (("--topology=v5x:4x4",), "v5x:4x4 is no topology (did you mean"),
        (("--topology=cpu:8", "--mesh=fsdp=3"), "MeshConfig(data=1, fsdp=3, tensor=1) does not"),
        (("--topology=cpu:8", "--gin.BATCH_SIZE=12"), "12 rows cannot be split over data=8"),
        (("--topology=cpu:8", "--search"), "needs an accelerator whose memory is known"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(dlm_plan, flags, message) -> None:
    done = dlm_plan(*TINY, *flags, code=2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dlm: error: ") and message in last


def test_virtual_cpus_and_no_tensorflow(environment, tmp_path) -> None:
    program = """
        import sys
        from dlm_jax import cli
        code = cli.main(["plan", *sys.argv[1:]])
        assert not {"tensorflow", "seqio", "torch", "sentencepiece"} & set(sys.modules)
        sys.exit(code)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines())]
        + [*TINY, "--topology=cpu:8", "--mesh=data=2,fsdp=2,tensor=2"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "mesh data=2 fsdp=2 tensor=2" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["verdict", "not", "known"]
    assert len(list((tmp_path / "cache" / "plans").glob("*.json.gz"))) == 1
