"""Bounds by hand: FLOPs of a step, time at peak, time on the links."""

from __future__ import annotations

import dataclasses

import pytest

from dlm_jax.models.config import LAYER_VALUES, SIZES
from dlm_jax.parallel.accelerators import accelerator
from dlm_jax.planning.collectives import Collective
from dlm_jax.planning.kept_values import recomputed_flops
from dlm_jax.planning.request import SamplingStep, TrainingStep
from dlm_jax.planning.roofline import roofline, step_flops
from dlm_jax.training.objectives import Diffusion, MaskedLanguageModel

CONFIG = SIZES["xxl"]


def test_model_flops_are_six_for_each_weight_and_token_and_attention(request_for) -> None:
    request = request_for(CONFIG, pairing="single", batch_size=4, length=512)
    width, mlp, layers = CONFIG.embed_dim, CONFIG.mlp_dim, CONFIG.num_layers
    weights = layers * (4 * width**2 + 2 * width * mlp)
    attention = 12 * layers * 512 * width  # scores and values, forward and backward
    head = 6 * 0.5 * width * (width + CONFIG.vocab_size)  # half of the positions, on average
    assert step_flops(request).model == pytest.approx(4 * 512 * (6 * weights + attention + head))


def test_coupled_draws_cost_twice(request_for) -> None:
    single = request_for(CONFIG, pairing="single", batch_size=4)
    coupled = request_for(CONFIG, pairing="coupled", batch_size=4)
    assert step_flops(coupled).model == 2 * step_flops(single).model


def test_the_head_projects_what_the_objective_selects(request_for) -> None:
    assert request_for(CONFIG).head_fraction == 0.5
    assert request_for(CONFIG, MaskedLanguageModel(mask_rate=0.15)).head_fraction == 0.15
    fixed = Diffusion(pairing="fixed_ratio", fixed_ratio=0.3)
    assert request_for(CONFIG, fixed).head_fraction == 0.3


def test_recomputation_by_policy(request_for) -> None:
    def again(policy):
        return recomputed_flops(dataclasses.replace(CONFIG, remat_policy=policy), 512)

    assert again("none") == 0
    assert again("full") == CONFIG.layer_flops_per_token(512)
    assert again("dots") == 4 * 512 * CONFIG.embed_dim
    # The named policy and the list of what it keeps are one program.
    assert again("minimal") == again(LAYER_VALUES) == again("dots") / 2
    names = ("qkv", "attention_out", "mlp_up", "mlp_down")
    assert again(names) == again("dots")
    # Full rematerialisation of layers that are nearly everything: at most three quarters.
    request = request_for(dataclasses.replace(CONFIG, remat_policy="full"), pairing="single")
    flops = step_flops(request)
    assert 0.75 < flops.model / flops.hardware < 0.79


def test_times_and_bounds(request_for) -> None:
    known = accelerator("TPU v5 lite")
    assert known is not None
    request = request_for(CONFIG, pairing="single", batch_size=128)
    flops = step_flops(request)
    sent = (
        Collective("all-gather", 16, 2, 1, 0, 9e9, 0),
        Collective("send", 2, 1, 1, 0, 0, 3.125e9),
    )
    bound = roofline(request, sent, known, devices=16)
    assert bound.compute_seconds == pytest.approx(flops.hardware / 16 / 197e12)
    assert bound.local_seconds == pytest.approx(9e9 / (2 * 45e9))
    assert bound.network_seconds == pytest.approx(1.0)
    low, high = bound.seconds
    assert low == max(bound.compute_seconds, bound.local_seconds, bound.network_seconds)
    assert high == pytest.approx(bound.compute_seconds + 0.1 + 1.0)
    ideal = flops.model / 16 / 197e12
    assert bound.mfu_with_overlap == pytest.approx(ideal / low)
    assert bound.mfu_without_overlap == pytest.approx(ideal / high)
    assert any("45 GB/s" in line for line in bound.assumptions)


def test_two_cores_share_the_links_of_a_chip_and_one_device_has_none_to_wait_for(
    request_for,
) -> None:
    known = accelerator("TPU7x")
    assert known is not None
    request = request_for(CONFIG, pairing="single", batch_size=8)
    sent = (Collective("all-gather", 8, 2, 1, 0, 9e10, 0),)
    assert roofline(request, sent, known, devices=8).local_seconds == pytest.approx(
        9e10 / (2 * 90e9 / 2)
    )
    alone = roofline(request, (), known, devices=1)
    assert alone.local_seconds == alone.network_seconds == 0
    assert alone.mfu_with_overlap == alone.mfu_without_overlap


def test_a_sampling_step_is_one_forward_pass() -> None:
    request = SamplingStep(CONFIG, batch_size=2, length=128)
    flops = step_flops(request)
    expected = 2 * 128 * CONFIG.num_layers * CONFIG.layer_flops_per_token(128)
    assert flops.model == flops.hardware == pytest.approx(expected)
    assert not isinstance(request, TrainingStep)
