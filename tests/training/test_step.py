"""The step is the same however the batch is cut or packed, and harmless when not finite."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.diffusion.scores import dense_scores
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.objectives import Diffusion, MaskedLanguageModel
from dlm_jax.training.scoring import score
from dlm_jax.training.stage import adaptation
from dlm_jax.training.state import TrainState
from dlm_jax.training.step import denoising_loss

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = EncoderConfig(
    vocab_size=264,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    max_positions=66,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
)
VOCABULARY = ByteVocabulary()
SGD = optax.sgd(0.1)  # its update shows the gradient itself


@pytest.fixture(scope="module")
def parameters():
    return encoders.parameters(encoders.Encoder(CONFIG, rngs=nnx.Rngs(0)))


def _examples(lengths, prompt=3):
    rng = np.random.default_rng(0)
    return [rng.integers(5, 250, n).astype(np.int32) for n in lengths]


def _batch(rows, length):
    """Rows of (example id, tokens); each example has a prompt of three tokens."""
    names = ("tokens", "segment_ids", "positions", "example_ids", "maskable")
    batch = {name: np.zeros((len(rows), length), np.int32) for name in names}
    for row, examples in enumerate(rows):
        begin = 0
        for segment, (number, tokens) in enumerate(examples, start=1):
            place = (row, slice(begin, begin + len(tokens)))
            batch["tokens"][place] = tokens
            batch["segment_ids"][place] = segment
            batch["positions"][place] = np.arange(len(tokens))
            batch["example_ids"][place] = number
            batch["maskable"][place] = np.arange(len(tokens)) >= 3
            begin += len(tokens)
    batch["maskable"] = batch["maskable"].astype(bool)
    return {name: jnp.asarray(array) for name, array in batch.items()}


def _step(objective, optimizer, config=CONFIG, **options):
    built, mesh = objective.build(VOCABULARY), make_mesh(MeshConfig())
    stage = adaptation(config, None, built, optimizer, mesh, length=32, seed=7, **options)
    return jax.jit(stage.step)


def _one_step(parameters, batch, objective=Diffusion(), config=CONFIG, **options):
    step = _step(objective, SGD, config, **options)
    return step(TrainState.create(parameters, SGD), batch)


def _assert_close(ours, theirs, tolerance=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), ours, theirs)


@pytest.mark.parametrize("objective", [Diffusion(label_smoothing=0.1), MaskedLanguageModel()])
def test_micro_batches_of_unequal_masks_give_the_same_step(parameters, objective):
    examples = list(enumerate(_examples([30, 6, 12, 25, 5, 9, 28, 7])))
    batch = _batch([[example] for example in examples], 32)
    whole, metrics = _one_step(parameters, batch, objective)
    for count in (2, 4, 8):
        cut, cut_metrics = _one_step(parameters, batch, objective, accumulation=count)
        _assert_close(cut.parameters, whole.parameters)
        for name in ("loss_sum", "weight_sum", "absorbed_tokens", "nll_sum", "tokens"):
            np.testing.assert_allclose(cut_metrics[name], metrics[name], rtol=1e-5)


def test_gradients_of_kernels_that_were_rounded_first_are_those_of_the_kernels(parameters):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    loss = denoising_loss(config, Diffusion().build(VOCABULARY), seed=7)
    batch = _batch([[example] for example in enumerate(_examples([30, 6, 12, 25]))], 32)

    @jax.jit
    def expected_step(tree):
        gradients, (metrics, _) = jax.grad(loss, has_aux=True)(tree, batch, jax.random.key(0), None)
        return jax.tree.map(lambda g: g / metrics["weight_sum"], gradients)

    expected = expected_step(parameters)
    for accumulation in (1, 2):
        state, _ = _one_step(parameters, batch, config=config, accumulation=accumulation)
        for path, theirs in jax.tree_util.tree_leaves_with_path(expected["layers"]):
            if path[-1].key != "kernel":
                continue
            old, new = parameters["layers"], state.parameters["layers"]
            for entry in path:
                old, new = old[entry.key], new[entry.key]
            assert new.dtype == jnp.float32
            # 16 bits have a precision of 1/256.
            difference = jnp.abs((old - new) / 0.1 - theirs).max()
            assert difference < 0.02 * jnp.abs(theirs).max()


def test_only_kernels_of_layers_are_rounded(parameters):
    narrow = encoders.rounded_kernels(parameters, "bfloat16")
    assert narrow["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert narrow["layers"]["mlp"]["up"]["bias"].dtype == jnp.float32
    assert narrow["embeddings"] is parameters["embeddings"]
    assert encoders.rounded_kernels(parameters, "float32") is parameters


def test_packed_rows_give_the_step_of_separate_rows(parameters):
    examples = list(enumerate(_examples([10, 6, 12, 9, 5, 9])))
    separate, metrics = _one_step(parameters, _batch([[e] for e in examples], 16))
    packed, packed_metrics = _one_step(parameters, _batch([examples[:3], examples[3:]], 32))
    _assert_close(packed.parameters, separate.parameters)
    assert float(packed_metrics["absorbed_tokens"]) == float(metrics["absorbed_tokens"])
    np.testing.assert_allclose(packed_metrics["loss_sum"], metrics["loss_sum"], rtol=1e-5)


def test_row_order_does_not_matter(parameters):
    examples = list(enumerate(_examples([10, 6, 12, 9])))
    forward, _ = _one_step(parameters, _batch([[e] for e in examples], 16))
    backward, _ = _one_step(parameters, _batch([[e] for e in examples[::-1]], 16))
    _assert_close(backward.parameters, forward.parameters)


def test_fused_scores_equal_the_dense_reference(parameters):
    batch = _batch([[e] for e in enumerate(_examples([14, 9, 12, 16]))], 16)
    noised = Diffusion(label_smoothing=0.1).build(VOCABULARY).noise(batch, jax.random.key(3))
    denoiser = encoders.from_parameters(CONFIG, parameters)
    dense = dense_scores(
        denoiser.logits(denoiser.features(noised.tokens, noised.positions, noised.segment_ids)),
        noised,
    )
    for chunk in (3, 16, 4096):
        fused = score(denoiser, noised, chunk=chunk)
        np.testing.assert_allclose(fused.loss_sum, dense.loss_sum, rtol=1e-5)
        np.testing.assert_allclose(fused.nll, dense.nll, atol=1e-5)
        np.testing.assert_array_equal(fused.correct, dense.correct)


def test_a_step_that_is_not_finite_changes_nothing(parameters):
    batch = _batch([[e] for e in enumerate(_examples([14, 9]))], 16)
    broken = jax.tree.map(jnp.copy, parameters)
    broken["head"]["bias"] = broken["head"]["bias"].at[5].set(jnp.nan)
    optimizer = optax.adam(0.1)
    before = TrainState.create(broken, optimizer)
    after, metrics = _step(Diffusion(), optimizer)(before, batch)
    jax.tree.map(np.testing.assert_array_equal, after.parameters, before.parameters)
    jax.tree.map(np.testing.assert_array_equal, after.optimizer_state, before.optimizer_state)
    assert (int(after.step), int(after.skipped), float(metrics["finite"])) == (1, 1, 0.0)


def test_dropout_is_a_function_of_seed_and_step(parameters):
    config = dataclasses.replace(CONFIG, dropout_rate=0.3)
    batch = _batch([[e] for e in enumerate(_examples([14, 9]))], 16)
    first, _ = _one_step(parameters, batch, config=config)
    again, _ = _one_step(parameters, batch, config=config)
    without, _ = _one_step(parameters, batch)
    jax.tree.map(np.testing.assert_array_equal, first.parameters, again.parameters)
    difference = jnp.abs(first.parameters["head"]["bias"] - without.parameters["head"]["bias"])
    assert float(difference.max()) > 1e-5


def test_importance_sampling_learns_its_table_and_saves_it(parameters):
    objective = Diffusion(time_sampling="importance", pairing="single")
    step = _step(objective, SGD)
    state = TrainState.create(parameters, SGD, objective.build(VOCABULARY).init_time_state())
    batch = _batch([[e] for e in enumerate(_examples([14, 9, 11, 12]))], 16)
    state, _ = step(state, batch)
    assert float(state.time_state.observations.sum()) == 4
    restored = TrainState(parameters=state.parameters, **state.training())
    assert jax.tree.structure(restored) == jax.tree.structure(state)
