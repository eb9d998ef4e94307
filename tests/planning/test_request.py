"""What gin files ask for, without data, weights or tokenizer."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest

from dlm_jax.cli import plan
from dlm_jax.errors import UserError
from dlm_jax.models.config import SIZES
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.planning.compile import expected_head_rounds
from dlm_jax.planning.request import SamplingStep, TrainingStep, shape_of


def request_of(*flags: str) -> TrainingStep | SamplingStep:
    from dlm_jax.cli.flags import parse

    arguments: argparse.Namespace = parse("plan", "", plan.add_arguments, flags)
    return plan._request(arguments)


def test_shipped_run_files_need_no_task_and_no_weights() -> None:
    request = request_of(
        "--gin_file=runs/finetune.gin",
        "--model=xxl",
        "--gin.DTYPE='bfloat16'",
        "--gin.BATCH_SIZE=64",
        "--gin.ACCUMULATION=4",
    )
    assert isinstance(request, TrainingStep)
    assert request.config == dataclasses.replace(SIZES["xxl"], dtype="bfloat16")
    assert (request.batch_size, request.rows, request.length) == (64, 128, 512)
    assert (request.accumulation, request.mesh) == (4, MeshConfig())


def test_models_by_gin_file_by_hub_name_and_by_binding() -> None:
    by_file = request_of("--gin_file=runs/adapt.gin", "--model=models/xlmr/large.gin")
    by_hub = request_of(
        "--gin_file=runs/adapt.gin", "--gin.INITIAL_CHECKPOINT='hf:FacebookAI/xlm-roberta-large'"
    )
    bound = request_of("--gin_file=models/xlmr/large.gin", "--gin_file=runs/pretrain.gin")
    assert by_file.config == by_hub.config == bound.config == SIZES["large"]
    assert isinstance(bound, TrainingStep) and bound.head_fraction == 0.15


def test_an_autoregressive_step_is_one_causal_pass_that_predicts_every_token() -> None:
    request = request_of("--gin_file=runs/autoregressive.gin", "--model=base")
    assert isinstance(request, TrainingStep)
    assert request.config == dataclasses.replace(SIZES["base"], attention_pattern="causal")
    assert (request.rows, request.head_fraction) == (request.batch_size, 1.0)


def test_mesh_of_the_command_line_wins() -> None:
    request = request_of("--gin_file=runs/adapt.gin", "--model=base", "--mesh=fsdp=-1,tensor=2")
    assert request.mesh == MeshConfig(data=1, fsdp=-1, tensor=2)


def test_evaluation_files_ask_for_a_sampling_step() -> None:
    request = request_of("--gin_file=runs/evaluate.gin", "--model=base")
    assert isinstance(request, SamplingStep)
    assert (request.config, request.batch_size, request.length) == (SIZES["base"], 64, 512)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "dlm plan needs --gin_file"),
        (["--gin_file=runs/adapt.gin"], "INITIAL_CHECKPOINT.* is required"),
        (["--gin_file=runs/adapt.gin", "--model=xxxl"], r"'xxxl' is not known.*did you mean xxl"),
        (["--gin_file=runs/adapt.gin", "--model=xl", "--mesh=fdsp=2"], "'fdsp'.*did you mean fsdp"),
        (["--gin_file=runs/adapt.gin", "--model=xl", "--mesh=fsdp=two"], "such as fsdp=4"),
        (["--gin_file=runs/evaluate.gin"], "needs the shape of the model: give --model"),
        (["--gin_file=runs/adapt.gin", "--model=xl", "--gin.LENGTH=1024"], "train.length is 1024"),
        (["--gin_file=runs/adapt.gin", "--model=xl", "--gin.TOTAL_STEPS=0"], "total_steps must be"),
        (["--gin_file=runs/adapt.gin", "--model=xl", "--gin.LENGHT=9"], "LENGHT.*did you mean LEN"),
    ],
)
def test_mistakes_are_a_sentence(flags, message) -> None:
    with pytest.raises(UserError, match=message):
        request_of(*flags)


def test_shapes_of_folders(tmp_path) -> None:
    document = {
        "model_type": "xlm-roberta",
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert shape_of(str(tmp_path)).vocab_size == 100
    with pytest.raises(UserError, match="is not known here"):
        shape_of("hf:someone/unheard-of")


def test_expected_rounds_of_the_head(request_for) -> None:
    request = request_for(SIZES["xxl"], pairing="single", batch_size=128, length=512)
    mesh = {"data": 1, "fsdp": 16, "tensor": 1}
    # 32,768 of 65,536 positions; 128 MiB of float32 logits of 15,680 rows hold 2,139 at a time.
    assert expected_head_rounds(request, mesh) == 16
    halves = dataclasses.replace(request, accumulation=2)
    assert expected_head_rounds(halves, mesh) == 8
    assert expected_head_rounds(dataclasses.replace(request, head_chunk=32768), mesh) == 1
