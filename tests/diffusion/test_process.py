from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.diffusion.schedules import Cosine, Linear, Polynomial
from dlm_jax.errors import UserError

MASK_ID = 5


corrupt = jax.jit(lambda process, *args: process.corrupt(*args), static_argnums=0)


def binomial_test(hits: float, trials: float, probability: float) -> float:
    return stats.binomtest(int(hits), int(trials), probability).pvalue


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(2.0)], ids=repr)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.9])
def test_marginals_follow_the_schedule(schedule, t, key, wide_batch):
    process = AbsorbingProcess(MASK_ID, schedule)
    masked = {Linear(): t, Cosine(): np.sin(np.pi / 2 * t)}.get(schedule, t**2)
    counts = np.zeros(512)
    for draw in range(4):
        tokens, absorbed = map(np.asarray, corrupt(process, wide_batch, np.float32(t), key, draw))
        assert not absorbed[:, :3].any()
        np.testing.assert_array_equal(tokens, np.where(absorbed, MASK_ID, wide_batch["tokens"]))
        counts += absorbed.sum(axis=1)
    assert binomial_test(counts.sum(), 512 * 52, masked) > 1e-3
    # The count of a row is Binomial(52, p): compare its variance, which dependence would change.
    variance = 52 * masked * (1 - masked)
    assert counts.var() == pytest.approx(variance, rel=4 * (2 / 512) ** 0.5)


def test_boundaries(key, wide_batch):
    process = AbsorbingProcess(MASK_ID)
    tokens, absorbed = process.corrupt(wide_batch, jnp.float32(1.0), key)
    np.testing.assert_array_equal(absorbed, wide_batch["maskable"])
    tokens, absorbed = process.corrupt(wide_batch, jnp.float32(0.0), key)
    np.testing.assert_array_equal(tokens, wide_batch["tokens"])
    assert not absorbed.any()


def test_two_samples_of_a_draw_are_independent(key, wide_batch):
    process = AbsorbingProcess(MASK_ID)
    first = np.asarray(process.absorb(wide_batch, jnp.float32(0.5), key, sample=0))[:, 3:]
    second = np.asarray(process.absorb(wide_batch, jnp.float32(0.5), key, sample=1))[:, 3:]
    cells = np.histogram2d(first.ravel(), second.ravel(), bins=2)[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-3


@pytest.mark.parametrize(("late", "early"), [(50, 1), (40, 13), (30, 29), (2, 1)])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_coupled_masks(late, early, schedule, key, wide_batch):
    process = AbsorbingProcess(MASK_ID, schedule)
    times = jnp.float32(late / 50), jnp.float32(early / 50)
    masks = [process.absorb_coupled(wide_batch, *times, key, draw) for draw in range(4)]
    first, second = (np.stack([m[i] for m in masks])[..., 3:] for i in (0, 1))
    assert not (second & ~first).any()
    for mask, time in ((first, late), (second, early)):
        probability = time / 50 if schedule == Linear() else np.sin(np.pi / 2 * time / 50)
        assert binomial_test(mask.sum(), mask.size, probability) > 1e-3


def test_equal_times_redraw_the_second_mask(key, wide_batch):
    process = AbsorbingProcess(MASK_ID)
    half = jnp.float32(0.5)
    first, second = (
        np.asarray(mask)[:, 3:] for mask in process.absorb_coupled(wide_batch, half, half, key)
    )
    cells = np.histogram2d(first.ravel(), second.ravel(), bins=2)[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-3
    assert (second & ~first).any()


def masks_by_example(batch, absorbed) -> dict[tuple[int, int], bool]:
    """{(example id, position): absorbed} of all tokens which are not padding."""
    inside = batch["segment_ids"] > 0
    ids, positions = batch["example_ids"][inside], batch["positions"][inside]
    return dict(zip(zip(ids.tolist(), positions.tolist()), np.asarray(absorbed)[inside].tolist()))


@pytest.mark.parametrize("prompt_corruption", ["none", "drop", "joint"])
def test_masks_belong_to_examples(prompt_corruption, key, pack):
    """Any packing, row order, batch split and offset give each example the mask it always has."""
    rate = 0.0 if prompt_corruption == "none" else 0.5
    process = AbsorbingProcess(MASK_ID, prompt_corruption=prompt_corruption, prompt_rate=rate)
    examples = {i * 977: ([0, 1], [i % 5, 2, 3, 4]) for i in range(1, 9)}
    ids = list(examples)
    layouts = {
        "one a row": [[i] for i in ids],
        "reversed": [[i] for i in reversed(ids)],
        "packed": [ids[0:4], ids[4:8]],
        "packed otherwise, with gaps": [
            [-1, ids[7], ids[2]],
            [ids[5]],
            [-1, -1, ids[0], -1, ids[6], ids[1]],
            [ids[4], ids[3]],
        ],
    }

    @jax.jit
    def masks(batch):
        tokens, absorbed = process.corrupt(batch, jnp.float32(0.6), key, 3)
        return absorbed, tokens == MASK_ID, process.maskable(batch, key, 3)

    results = {}
    for name, layout in layouts.items():
        batch = pack(examples, layout, 24, rows=8)
        results[name] = tuple(masks_by_example(batch, mask) for mask in masks(batch))
    split = {}
    for i in ids:
        batch = pack(examples, [[i]], 6)
        split |= masks_by_example(batch, masks(batch)[0])
    reference = results["one a row"]
    assert split == reference[0]
    assert 0 < sum(reference[0].values()) < len(reference[0])
    for result in results.values():
        assert result == reference


def test_draws_differ(key, wide_batch):
    process = AbsorbingProcess(MASK_ID)
    masks = [np.asarray(process.absorb(wide_batch, jnp.float32(0.5), key, d)) for d in (0, 1)]
    agreement = (masks[0] == masks[1])[:, 3:]
    assert binomial_test(agreement.sum(), agreement.size, 0.5) > 1e-3


def test_dropped_prompts_are_whole_and_without_loss(key, wide_batch):
    process = AbsorbingProcess(
        MASK_ID, prompt_corruption="drop", prompt_rate=0.3, protected_ids=(0,)
    )
    tokens, absorbed = map(np.asarray, process.corrupt(wide_batch, jnp.float32(0.5), key))
    assert not absorbed[:, :3].any()
    hidden = tokens[:, :3] == MASK_ID
    assert not hidden[:, 0].any(), "token 0 of the prompt is protected"
    np.testing.assert_array_equal(hidden[:, 1], hidden[:, 2])
    assert binomial_test(hidden[:, 1].sum(), 512, 0.3) > 1e-3
    clean = AbsorbingProcess(MASK_ID).absorb(wide_batch, jnp.float32(0.5), key)
    np.testing.assert_array_equal(absorbed, clean)


def test_joint_prompts_are_noised_with_loss(key, wide_batch):
    process = AbsorbingProcess(MASK_ID, prompt_corruption="joint", prompt_rate=0.4)
    maskable = np.asarray(process.maskable(wide_batch, key))
    chosen = maskable[:, 0]
    np.testing.assert_array_equal(maskable[:, :3], np.tile(chosen[:, None], 3))
    assert maskable[:, 3:].all()
    assert binomial_test(chosen.sum(), 512, 0.4) > 1e-3
    tokens, absorbed = map(np.asarray, process.corrupt(wide_batch, jnp.float32(0.5), key))
    prompts = absorbed[:, :3]
    assert not prompts[~chosen].any()
    assert binomial_test(prompts[chosen].sum(), 3 * chosen.sum(), 0.5) > 1e-3
    np.testing.assert_array_equal(tokens == MASK_ID, absorbed)


def test_what_follows_the_response_is_no_prompt(key, pack):
    """A given token behind the response, such as a fixed end of sequence, always stays."""
    batch = pack({9: ([1, 2], [3, 4, 0])}, [[9]], 6)
    batch["maskable"][0, 4] = False
    for prompt_corruption in ("drop", "joint"):
        process = AbsorbingProcess(MASK_ID, prompt_corruption=prompt_corruption, prompt_rate=1.0)
        tokens, _ = process.corrupt(batch, jnp.float32(1.0), key)
        assert np.asarray(tokens)[0].tolist() == [MASK_ID] * 4 + [0, 0]


SHARDED = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from dlm_jax.diffusion.objectives import DiffusionObjective
from dlm_jax.diffusion.process import AbsorbingProcess
rng = np.random.default_rng(0)
shape = (8, 16)
batch = dict(
    tokens=rng.integers(0, 5, shape).astype(np.int32),
    maskable=rng.random(shape) < 0.8,
    segment_ids=np.repeat(np.arange(4, dtype=np.int32), 4)[None].repeat(8, 0),
    positions=np.tile(np.arange(4, dtype=np.int32), 4)[None].repeat(8, 0),
    example_ids=np.arange(32, dtype=np.uint32).reshape(8, 4).repeat(4, 1),
)
key = jax.random.key(1, impl='threefry2x32')
objective = DiffusionObjective(
    AbsorbingProcess(5, prompt_corruption='joint', prompt_rate=0.5), label_smoothing=0.1
)
alone = jax.device_get(jax.jit(objective.noise)(batch, key))
assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec('data'))
with jax.set_mesh(mesh):
    placed = jax.device_put(batch, sharding)
    compiled = jax.jit(objective.noise).lower(placed, key).compile()
    sharded = jax.device_get(compiled(placed, key))
assert 'f64' not in compiled.as_text()
jax.tree.map(np.testing.assert_array_equal, alone, sharded)
assert alone.absorbed.any()
"""


def test_noise_is_the_same_on_four_devices():
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_corruption": "jiont", "prompt_rate": 0.1}, "'jiont'.*did you mean joint"),
        ({"prompt_corruption": "drop", "prompt_rate": 1.5}, "prompt_rate=1.5"),
        ({"prompt_rate": 0.1}, "no effect"),
        ({"num_timesteps": 0}, "num_timesteps=0"),
        ({"num_timesteps": 2.5}, "num_timesteps=2.5"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"mask_id": -1}, "mask_id=-1"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        AbsorbingProcess(**({"mask_id": MASK_ID} | arguments))
