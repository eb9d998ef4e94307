"""What the length predictor learns from: prompts alone, in steps however they are cut."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dlm_jax.errors import UserError
from dlm_jax.evaluation.evaluators import GenerationEvaluator, LikelihoodEvaluator
from dlm_jax.models import encoder as encoders
from dlm_jax.models import length_predictor as predictors
from dlm_jax.models.config import SIZES
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.evaluators import check_before_training, check_evaluators
from dlm_jax.training.length_objective import frozen_features, length_stage, predicted_log_probs

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = dataclasses.replace(SIZES["test"], dropout_rate=0.3, attention_dropout_rate=0.3)
LENGTH, WIDTH = 24, 16
PROMPTS, ANSWERS = [4, 9, 16, 1, 6, 3, 8, 2], [3, 8, 1, 20, 2, 5, 7, 6]  # with <s> and </s>
SGD = optax.sgd(0.1)  # its update shows the gradient itself


@pytest.fixture(scope="module")
def frozen():
    return encoders.parameters(encoders.Encoder(CONFIG, rngs=nnx.Rngs(0)))


def batch_of(answers=None):
    """Rows of random prompts and answers, one example a row."""
    random = np.random.default_rng(0)
    batch = {
        "tokens": np.ones((len(PROMPTS), LENGTH), np.int32),
        "maskable": np.zeros((len(PROMPTS), LENGTH), bool),
        "segment_ids": np.zeros((len(PROMPTS), LENGTH), np.int32),
        "positions": np.zeros((len(PROMPTS), LENGTH), np.int32),
    }
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers or ANSWERS)):
        size = prompt + answer
        batch["tokens"][row, :prompt] = random.integers(5, 90, prompt)
        batch["tokens"][row, prompt:size] = 7 + answer
        batch["maskable"][row, prompt:size] = True
        batch["segment_ids"][row, :size] = 1
        batch["positions"][row, :size] = np.arange(size)
    return {name: jnp.asarray(array) for name, array in batch.items()}


def test_features_are_those_of_the_prompt_alone(frozen) -> None:
    features = frozen_features(CONFIG, frozen, WIDTH)
    batch = batch_of()
    found = features(batch, 0)
    assert found["features"].shape == (len(PROMPTS), WIDTH, CONFIG.embed_dim)
    assert found["target_tokens"].tolist() == ANSWERS
    assert found["segment_ids"].sum(-1).tolist() == PROMPTS
    # Other answers, of other lengths, leave them as they are.
    other = features(batch_of(answers=[1, 2, 3, 4, 5, 6, 7, 8]), 0)
    np.testing.assert_array_equal(found["features"], other["features"])
    # And they are what decoding sees: the prompt in a row of its own.
    encoder = encoders.from_parameters(CONFIG, frozen)
    for row, size in enumerate(PROMPTS):
        tokens = batch["tokens"][row : row + 1, :size]
        alone = encoder.features(tokens, jnp.arange(size)[None], jnp.ones_like(tokens))
        np.testing.assert_allclose(found["features"][row, :size], alone[0], atol=1e-5)


def test_dropout_of_features_is_a_function_of_the_batchs_number(frozen) -> None:
    batch = batch_of()
    plain = frozen_features(CONFIG, frozen, WIDTH)(batch, 3)["features"]
    dropping = frozen_features(CONFIG, frozen, WIDTH, dropout=True)
    first, again, other = (dropping(batch, number)["features"] for number in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1 and np.abs(first - plain).max() > 0.1


def stage(accumulation: int = 1, dropout_rate: float = 0.0):
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        return length_stage(
            CONFIG, SGD, mesh, seed=0, accumulation=accumulation, dropout_rate=dropout_rate
        )


def test_a_step_minimises_the_mean_cross_entropy_of_the_lengths(frozen) -> None:
    features = frozen_features(CONFIG, frozen, WIDTH)(batch_of(), 0)
    made = stage()
    state = made.create()
    before = jax.tree.map(jnp.copy, state.parameters)

    def mean_loss(parameters):
        log_probs = predicted_log_probs(CONFIG, parameters, features)
        true = np.maximum(np.array(ANSWERS), 2) - 2
        return -log_probs[np.arange(len(true)), true].mean()

    loss, gradient = jax.value_and_grad(mean_loss)(before)
    after, metrics = jax.jit(made.step)(state, features)
    np.testing.assert_allclose(metrics["loss_sum"] / metrics["weight_sum"], loss, rtol=1e-5)
    assert metrics["weight_sum"] == len(PROMPTS) and metrics["tokens"] == sum(PROMPTS)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * g, atol=1e-6),
        after.parameters,
        before,
        gradient,
    )
    # What is trained has the shape of the predictor alone.
    assert jax.tree.map(jnp.shape, after.parameters) == jax.tree.map(
        lambda leaf: leaf.shape, predictors.abstract_parameters(CONFIG)
    )


def test_micro_batches_give_the_same_step_and_dropout_another(frozen) -> None:
    features = frozen_features(CONFIG, frozen, WIDTH)(batch_of(), 0)

    def step(**options):
        made = stage(**options)
        return jax.jit(made.step)(made.create(), features)

    whole, metrics = step()
    for accumulation in (2, 4):
        cut, cut_metrics = step(accumulation=accumulation)
        np.testing.assert_allclose(metrics["loss_sum"], cut_metrics["loss_sum"], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            whole.parameters,
            cut.parameters,
        )
    dropped = float(step(dropout_rate=0.5)[1]["grad_norm"])
    assert dropped != pytest.approx(float(metrics["grad_norm"]), rel=1e-3)


def test_a_run_is_not_evaluated_on_predicted_canvases_while_it_trains() -> None:
    check_before_training([GenerationEvaluator(), LikelihoodEvaluator()])
    with pytest.raises(UserError, match="canvas is 'predicted', but .* for a finished run"):
        check_before_training([GenerationEvaluator(canvas="predicted")])
    check_evaluators([GenerationEvaluator(canvas="predicted")], CONFIG)


def test_an_evaluator_says_itself_what_a_run_lacks_while_it_trains() -> None:
    class OfTheAverage(LikelihoodEvaluator):
        """Has a need of its own, which no other module knows of."""

        def check_before_training(self) -> None:
            raise UserError("OfTheAverage needs the averages of a finished run")

    with pytest.raises(UserError, match="^OfTheAverage needs the averages of a finished run$"):
        check_before_training([GenerationEvaluator(), OfTheAverage()])


SHARDED = """
import jax, json, numpy as np, optax
from flax import nnx
from dlm_jax.checkpoints.fingerprint import fingerprint
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import SIZES
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.evaluators import check_before_training, check_evaluators
from dlm_jax.training.length_objective import frozen_features, length_stage
from dlm_jax.training.sharding import batch_sharding, parameter_shardings, shardings_of

config = SIZES["test"]
tree = encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(0)))
random = np.random.default_rng(0)
batch = {
    "tokens": random.integers(5, 90, (8, 16)).astype(np.int32),
    "maskable": np.arange(16)[None] >= random.integers(3, 9, (8, 1)),
    "segment_ids": np.ones((8, 16), np.int32),
    "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
}
losses, prints = [], []
for axes in ({"data": 1, "fsdp": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
    count = int(np.prod(list(axes.values())))
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:count])
    with jax.set_mesh(mesh):
        split = jax.device_put(tree, parameter_shardings(config, mesh))
        prints.append(fingerprint(split))
        rows = jax.device_put(batch, batch_sharding(mesh))
        adam = optax.adam(1e-2)
        stage = length_stage(config, adam, mesh, seed=0, accumulation=2, dropout_rate=0.1)
        state, step = stage.create(), jax.jit(stage.step)
        sums = []
        for number in range(4):
            state, metrics = step(state, frozen_features(config, split, 16)(rows, number))
            sums.append(float(metrics["loss_sum"]))
        losses.append(sums)
print(json.dumps({"losses": losses, "prints": prints}))
"""


def test_a_mesh_of_eight_devices_learns_the_same_and_knows_the_same_model(on_eight_devices) -> None:
    found = on_eight_devices(SHARDED)
    one, eight = found["losses"]
    np.testing.assert_allclose(one, eight, rtol=1e-4)
    assert one[-1] < one[0]
    assert found["prints"][0] == found["prints"][1]
