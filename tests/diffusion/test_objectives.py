from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax.diffusion.objectives import (
    DiffusionObjective,
    MaskedLanguageModelObjective,
    loss_weight,
)
from dlm_jax.diffusion.pairing import PAIRINGS
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.diffusion.schedules import Cosine, Linear, Polynomial
from dlm_jax.diffusion.scores import dense_scores
from dlm_jax.diffusion.time_sampling import IID, Importance, ImportanceState, LowDiscrepancy
from dlm_jax.errors import UserError

MASK_ID, VOCAB_SIZE = 5, 6
PROCESS = AbsorbingProcess(MASK_ID)
noise = jax.jit(lambda objective, *args: objective.noise(*args), static_argnums=0)
dense = jax.jit(dense_scores)


@pytest.fixture(scope="module")
def packed(pack):
    """Three rows: packed examples of several lengths, padding, and one without a response."""
    examples = {
        4: ([0, 1], [2, 3, 4, 1, 0]),
        5: ([3], [4, 4]),
        6: ([], [1, 0, 2, 3]),
        7: ([2, 2, 2], [3]),
        8: ([1, 1], []),
        9: ([4], [0, 1, 2, 3, 4, 0, 1, 2]),
    }
    return pack(examples, [[4, 5], [6, 7, 8], [9]], 12)


@pytest.fixture(scope="module")
def logits():
    values = np.random.default_rng(3).normal(size=(6, 12, VOCAB_SIZE)) * 2
    return values.astype(np.float32)


def test_weights_of_the_paper():
    t = jnp.array([1, 2, 25, 49, 50], jnp.float32) / 50
    assert loss_weight(PROCESS, "linear", t).tolist() == [50, 49, 26, 2, 1]
    assert loss_weight(PROCESS, "constant", t).tolist() == [50] * 5
    reciprocal = [50, 25, 2, 50 / 49, 1]
    np.testing.assert_allclose(loss_weight(PROCESS, "reciprocal", t), reciprocal, rtol=1e-6)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(3.0)], ids=repr)
@pytest.mark.parametrize("weighting", ["linear", "reciprocal", "constant"])
def test_continuous_weights_are_the_limit_of_discrete_ones(weighting, schedule):
    t = jnp.array([100, 500, 900], jnp.float32) / 1000
    discrete = loss_weight(AbsorbingProcess(MASK_ID, schedule, 1000), weighting, t)
    continuous = loss_weight(AbsorbingProcess(MASK_ID, schedule, None), weighting, t)
    scale = 1 if weighting == "reciprocal" else 1000
    np.testing.assert_allclose(np.asarray(discrete) / scale, continuous, rtol=2e-2)


def reference_loss(batch, noised, logits, weighting, smoothing):
    """Formulas of the paper's App. A.1 in float64, example by example; T = 50."""
    total, sequences = 0.0, 0
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    rows = len(batch["tokens"])
    for row, absorbed in enumerate(np.asarray(noised.absorbed)):
        clean = row % rows
        for segment in range(1, batch["segment_ids"][clean].max() + 1):
            inside = batch["segment_ids"][clean] == segment
            n_maskable = (batch["maskable"][clean] & inside).sum()
            if n_maskable == 0:
                continue
            sequences += 1
            t = round(float(np.asarray(noised.time)[row][inside][0]) * 50)
            w = {"linear": 50 - (t - 1), "reciprocal": 50 / t, "constant": 50}[weighting]
            for i in np.flatnonzero(absorbed & inside):
                cross_entropy = -log_probs[row, i, batch["tokens"][clean, i]]
                uniform = -log_probs[row, i].mean()
                total += (
                    (1 - smoothing) * w * cross_entropy + smoothing * 50 * uniform
                ) / n_maskable
    return total / sequences, sequences


COMBINATIONS = [
    *(("linear", pairing, 0.0) for pairing in PAIRINGS),
    ("linear", "coupled", 0.1),
    ("reciprocal", "coupled", 0.1),
    ("constant", "single", 0.1),
]


@pytest.mark.parametrize(("weighting", "pairing", "smoothing"), COMBINATIONS)
def test_loss_equals_the_formula(weighting, pairing, smoothing, key, packed, logits):
    objective = DiffusionObjective(
        PROCESS, weighting, pairing, label_smoothing=smoothing, fixed_ratio=0.5
    )
    noised = noise(objective, packed, key, 1)
    rows = 3 * objective.rows_per_example
    assert noised.tokens.shape == (rows, 12) and noised.absorbed.any()
    scores = dense(jnp.asarray(logits[:rows]), noised)
    loss_sum, weight_sum, metrics = objective.loss(noised, scores)
    expected, sequences = reference_loss(packed, noised, logits[:rows], weighting, smoothing)
    assert float(weight_sum) == sequences == 5 * objective.rows_per_example
    np.testing.assert_allclose(loss_sum / weight_sum, expected, rtol=1e-5)
    absorbed = np.asarray(noised.absorbed)
    assert float(metrics["absorbed_tokens"]) == absorbed.sum()
    assert float(metrics["maskable_tokens"]) == 20 * objective.rows_per_example
    assert float(metrics["sequences"]) == sequences
    targets = np.asarray(noised.targets)
    best = logits[:rows].argmax(-1) == targets
    assert float(metrics["correct"]) == (best & absorbed).sum()
    log_probs = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(jnp.asarray(logits[:rows]))), targets[..., None], -1
    )
    np.testing.assert_allclose(metrics["nll_sum"], -log_probs[..., 0][absorbed].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "pairing"), [*((50, p) for p in PAIRINGS), (None, "coupled"), (None, "fixed_ratio")]
)
def test_times_and_masks_of_the_pairings(steps, pairing, key, wide_batch):
    objective = DiffusionObjective(
        AbsorbingProcess(MASK_ID, num_timesteps=steps), pairing=pairing, fixed_ratio=0.14
    )
    noised = noise(objective, wide_batch, key)
    time, absorbed = np.asarray(noised.time), np.asarray(noised.absorbed)
    np.testing.assert_array_equal(time, np.tile(time[:, :1], 16))
    assert (np.asarray(noised.weight) > 0).sum() == absorbed.sum() - (
        0 if steps else (absorbed & (time == 1)).sum()
    )
    hits, expected = int(absorbed.sum()), 13 * float(time[:, 0].sum())
    assert hits == pytest.approx(expected, abs=4 * expected**0.5)
    if pairing == "single":
        assert len(time) == 512
        return
    first, second = np.split(time[:, 0], 2)
    mask, other = np.split(absorbed, 2)
    if pairing == "coupled":
        assert (first >= second).all() and (first > second).any()
        differ = first != second
        assert not (other & ~mask)[differ].any()
        if steps:
            assert (other & ~mask)[~differ].any()
            assert stats.binomtest(int((~differ).sum()), 512, 1 / 50).pvalue > 1e-3
    elif pairing == "two_step":
        assert abs(stats.spearmanr(first, second).statistic) < 0.2
    else:
        np.testing.assert_array_equal(first, second)
        if pairing == "fixed_ratio":
            np.testing.assert_array_equal(first, np.float32(0.14))
    if pairing != "coupled":
        assert (other & ~mask).any()


def test_coupled_time_law(make_keys, tiny_batch):
    """t1 = max and t2 = min of two uniform steps, over seeds, for one and the same example."""
    objective = DiffusionObjective(AbsorbingProcess(MASK_ID, num_timesteps=4))
    draw = jax.vmap(lambda key: objective.noise(tiny_batch, key).time)
    times = jax.jit(draw)(make_keys(100, 4000))
    late, early = (np.asarray(times[:, row, 0] * 4).round().astype(int) for row in (0, 4))
    counts = np.zeros((5, 5))
    np.add.at(counts, (late, early), 1)
    cells = [(a, b) for a in range(1, 5) for b in range(1, a + 1)]
    expected = [4000 / 16 * (1 if a == b else 2) for a, b in cells]
    assert stats.chisquare([counts[cell] for cell in cells], expected).pvalue > 1e-3


def weights_by_token(batch, noised, half) -> dict:
    rows = len(batch["tokens"])
    inside = batch["segment_ids"] > 0
    names = ("absorbed", "weight", "smoothing_weight", "time", "tokens")
    columns = [np.asarray(getattr(noised, n))[half * rows :][:rows][inside].tolist() for n in names]
    tokens = zip(batch["example_ids"][inside].tolist(), batch["positions"][inside].tolist())
    return dict(zip(tokens, zip(*columns)))


@pytest.mark.parametrize("sampling", [LowDiscrepancy(), IID(), Importance()], ids=repr)
def test_everything_belongs_to_examples(sampling, key, pack):
    """Times, masks and weights under permutation of rows, batch split and packing."""
    objective = DiffusionObjective(PROCESS, time_sampling=sampling, label_smoothing=0.2)
    examples = {2**32 - 7 * i: ([1] * (i % 3), [i % 5] * i) for i in range(1, 7)}
    ids = list(examples)
    layouts = (
        [[i] for i in ids],
        [[i] for i in reversed(ids)],
        [[ids[3], -1, ids[5]], [-1, ids[0], ids[1], ids[2]], [ids[4]]],
    )
    results = [
        [weights_by_token(batch, noise(objective, batch, key), half) for half in (0, 1)]
        for batch in (pack(examples, layout, 14, rows=6) for layout in layouts)
    ]
    assert results[0] == results[1] == results[2]
    parts = [
        pack(examples, [[i] for i in ids[start : start + 2]], 14, rows=6) for start in (0, 2, 4)
    ]
    for half in (0, 1):
        split: dict = {}
        for part in parts:
            split |= weights_by_token(part, noise(objective, part, key), half)
        assert split == results[0][half]


def test_micro_batches_add_up(key, packed, logits):
    """Sums over the parts of a batch are the sums over the whole."""
    objective = DiffusionObjective(
        PROCESS, "constant", "single", label_smoothing=0.1, fixed_ratio=0.5
    )

    def sums(rows):
        part = {name: array[rows] for name, array in packed.items()}
        noised = noise(objective, part, key)
        return objective.loss(noised, dense(jnp.asarray(logits[:3][rows]), noised))

    whole, parts = sums(slice(0, 3)), [sums(slice(row, row + 1)) for row in range(3)]
    added = jax.tree.map(lambda *terms: sum(terms), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, added)


def test_gradient_of_the_dense_scores(key, packed, logits):
    """d loss / d logits = weight·(p - target) + smoothing_weight·(p - 1/V)."""
    objective = DiffusionObjective(PROCESS, label_smoothing=0.1)
    noised = noise(objective, packed, key)
    gradient = jax.jit(jax.grad(lambda x: dense_scores(x, noised).loss_sum))(logits)
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    target = np.eye(VOCAB_SIZE)[np.asarray(noised.targets)]
    weight, smoothing = (np.asarray(a)[..., None] for a in (noised.weight, noised.smoothing_weight))
    expected = weight * (p - target) + smoothing * (p - 1 / VOCAB_SIZE)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    statistics = jax.jit(jax.grad(lambda x: dense_scores(x, noised).nll.sum()))(logits)
    assert not np.asarray(statistics).any()


def test_prompts_noised_jointly_count_as_maskable(key, wide_batch):
    """Under 'joint' an example's weights are normalised by prompt and response together."""
    process = AbsorbingProcess(MASK_ID, prompt_corruption="joint", prompt_rate=0.5)
    noised = noise(DiffusionObjective(process, "constant", "single"), wide_batch, key)
    chosen = np.asarray(noised.maskable)[:, 0]
    absorbed, weight = np.asarray(noised.absorbed), np.asarray(noised.weight)
    expected = np.where(chosen, 50 / 16, 50 / 13)[:, None] * absorbed
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    assert absorbed[chosen][:, :3].any() and not absorbed[~chosen][:, :3].any()


def test_importance_table_learns_the_loss_without_importance_weights(key, packed):
    """Entered are w(t)/N·Σ nll per example; importance weights are divided out again."""
    sampling = Importance(history=1)
    objective = DiffusionObjective(
        AbsorbingProcess(MASK_ID, num_timesteps=4), pairing="single", time_sampling=sampling
    )
    state = ImportanceState(jnp.array([1.0, 16.0, 4.0, 9.0]), jnp.ones(4))
    noised = noise(objective, packed, key, 0, state)
    nll = jnp.where(noised.absorbed, 1.5, 0.0)
    updated = jax.jit(objective.update_time_state)(state, noised, nll)
    expected: dict[int, list[float]] = {step: [] for step in range(1, 5)}
    for row in range(3):
        for segment in range(1, 4):
            inside = np.asarray(noised.segment_ids)[row] == segment
            maskable = inside & packed["maskable"][row]
            if maskable.any():
                step = round(float(np.asarray(noised.time)[row][inside][0]) * 4)
                share = (np.asarray(noised.absorbed)[row] & inside).sum() / maskable.sum()
                expected[step].append(((5 - step) * 1.5 * share) ** 2)
    assert np.asarray(noised.weight).any()
    for step, squares in expected.items():
        assert float(updated.observations[step - 1]) == 1 + len(squares)
        if squares:
            np.testing.assert_allclose(updated.second_moment[step - 1], np.mean(squares), rtol=1e-4)
    assert objective.init_time_state().second_moment.shape == (4,)
    assert DiffusionObjective(PROCESS).init_time_state() is None


@pytest.mark.parametrize("replacement", ["80/10/10", "mask"])
def test_masked_language_model(replacement, key, wide_batch):
    batch = wide_batch | {
        "tokens": wide_batch["tokens"] + 3,
        "maskable": wide_batch["segment_ids"] > 0,
    }
    special, vocab_size, mask_id = (0, 4), 12, 11
    objective = MaskedLanguageModelObjective(
        mask_id, vocab_size, replacement=replacement, special_ids=special
    )
    noised = [noise(objective, batch, key, draw) for draw in range(8)]
    selected = np.stack([n.absorbed for n in noised])
    tokens = np.stack([n.tokens for n in noised])
    targets = np.broadcast_to(batch["tokens"], tokens.shape)
    candidates = ~np.isin(targets, special)
    assert not selected[~candidates].any()
    assert stats.binomtest(int(selected.sum()), int(candidates.sum()), 0.15).pvalue > 1e-3
    np.testing.assert_array_equal(tokens[~selected], targets[~selected])
    if replacement == "mask":
        assert (tokens[selected] == mask_id).all()
        return
    assert (
        stats.binomtest(int((tokens[selected] == mask_id).sum()), int(selected.sum()), 0.8).pvalue
        > 1e-3
    )
    written, wanted = (a[selected & (tokens != mask_id)] for a in (tokens, targets))
    drawn = written[written != wanted]
    assert not np.isin(drawn, special).any()
    # A random draw hits the token itself in one of nine cases, so 10% + 10%/9 stay.
    kept = int((written == wanted).sum())
    assert stats.binomtest(kept, len(written), (1 + 1 / 9) / 2).pvalue > 1e-3
    never_targets = [8, 9, 10]
    counts = [int((drawn == token).sum()) for token in never_targets]
    assert min(counts) > 0 and stats.chisquare(counts).pvalue > 1e-3


def test_masked_language_model_loss_is_the_mean_over_selected_tokens(key, packed, logits):
    objective = MaskedLanguageModelObjective(MASK_ID, VOCAB_SIZE, mask_rate=0.5)
    noised = noise(objective, packed, key)
    loss_sum, weight_sum, metrics = objective.loss(noised, dense(jnp.asarray(logits[:3]), noised))
    selected = np.asarray(noised.absorbed)
    assert float(weight_sum) == selected.sum() == float(metrics["absorbed_tokens"]) > 0
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits[:3])))
    nll = -np.take_along_axis(log_probs, packed["tokens"][..., None], -1)[..., 0]
    np.testing.assert_allclose(loss_sum / weight_sum, nll[selected].mean(), rtol=1e-5)
    assert float(metrics["sequences"]) == 5


def test_masked_language_model_masks_belong_to_examples(key, pack):
    objective = MaskedLanguageModelObjective(MASK_ID, VOCAB_SIZE, mask_rate=0.5)
    examples = {i: ([1], [2, 3, 4, 0]) for i in (5, 2**31 + 1, 17)}
    a, b, c = examples
    one, other = pack(examples, [[a, b], [c]], 16), pack(examples, [[c, -1, b], [-1, a]], 16)
    reference = weights_by_token(one, noise(objective, one, key), 0)
    assert reference == weights_by_token(other, noise(objective, other, key), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionObjective(PROCESS, "recipocal"), "'recipocal'.*did you mean reciprocal"),
        (lambda: DiffusionObjective(PROCESS, pairing="twostep"), "did you mean two_step"),
        (lambda: DiffusionObjective(PROCESS, label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda: DiffusionObjective(PROCESS, fixed_ratio=0.0), "fixed_ratio=0.0"),
        (lambda: DiffusionObjective(PROCESS, time_sampling="iid"), "time_sampling='iid'"),
        (
            lambda: DiffusionObjective(
                AbsorbingProcess(MASK_ID, num_timesteps=1), time_sampling=Importance()
            ),
            "num_timesteps",
        ),
        (lambda: MaskedLanguageModelObjective(6, 6), "mask_id=6"),
        (lambda: MaskedLanguageModelObjective(5, 6, special_ids=(9,)), "special_ids"),
        (lambda: MaskedLanguageModelObjective(5, 6, special_ids=(0, 1, 2, 3, 4)), "leave no token"),
        (lambda: MaskedLanguageModelObjective(5, 6, mask_rate=0), "mask_rate=0"),
        (lambda: MaskedLanguageModelObjective(5, 6, replacement="80-10-10"), "80/10/10"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()
