"""Small batches and a small denoiser whose every number can be enumerated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.diffusion.objectives import Noised

MASK_ID = 5
VOCAB_SIZE = 6
LENGTH = 6

Layout = Sequence[Sequence[int]]
Batch = Mapping[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Compiling is most of the time of these tests, and their arrays are tiny."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def key() -> jax.Array:
    return jax.random.key(20230812, impl="threefry2x32")


@pytest.fixture(scope="session")
def make_keys() -> Callable[[int, int], jax.Array]:
    """(first seed, number) -> array of typed keys."""

    def make(first: int, number: int) -> jax.Array:
        seeds = jnp.arange(first, first + number)
        return jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)

    return make


def pack_examples(
    examples: Mapping[int, tuple[list[int], list[int]]],
    layout: Layout,
    length: int,
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """Lays out examples {id: (prompt, response)} as rows of ids, -1 for a gap of one token."""
    shape = (rows or len(layout), length)
    batch: dict[str, np.ndarray] = {
        "tokens": np.zeros(shape, np.int32),
        "maskable": np.zeros(shape, bool),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "example_ids": np.zeros(shape, np.uint32),
    }
    for row, ids in enumerate(layout):
        start = segment = 0
        for example_id in ids:
            if example_id < 0:
                start += 1
                continue
            prompt, response = examples[example_id]
            stop = start + len(prompt) + len(response)
            segment += 1
            batch["tokens"][row, start:stop] = prompt + response
            batch["maskable"][row, start + len(prompt) : stop] = True
            batch["segment_ids"][row, start:stop] = segment
            batch["positions"][row, start:stop] = np.arange(stop - start)
            batch["example_ids"][row, start:stop] = example_id
            start = stop
    return batch


@pytest.fixture(scope="session")
def pack() -> Callable[..., dict[str, np.ndarray]]:
    return pack_examples


@pytest.fixture(scope="session")
def wide_batch() -> dict[str, np.ndarray]:
    """512 rows of one example of 3 prompt and 13 response tokens each, ids from 2**32 - 512 on."""
    examples = {
        2**32 - 512 + i: ([0, 1, 2], [(i + j) % MASK_ID for j in range(13)]) for i in range(512)
    }
    return pack_examples(examples, [[i] for i in examples], 16)


@pytest.fixture(scope="session")
def tiny_batch() -> dict[str, np.ndarray]:
    """Four rows, one example each: 6, 5, 4 and 1 maskable tokens, the last two with padding."""
    examples = {
        7: ([], [0, 1, 2, 3, 4, 0]),
        3: ([2], [4, 4, 1, 0, 3]),
        11: ([1], [2, 2, 3, 0]),
        4_000_000_000: ([3, 0], [1]),
    }
    return pack_examples(examples, [[i] for i in examples], LENGTH)


@pytest.fixture(scope="session")
def toy_logits() -> Callable[[jax.Array], jax.Array]:
    """Tokens [rows, 6] -> logits [rows, 6, 5] that depend on every other token.

    The more is masked, the surer and the more wrong they are: the loss depends on time strongly.
    """
    rng = np.random.default_rng(5)
    table = jnp.asarray(rng.normal(size=(LENGTH, LENGTH, VOCAB_SIZE, 5)), jnp.float32)
    positions = np.arange(LENGTH)

    def logits(tokens: jax.Array) -> jax.Array:
        # votes [rows, i, j, 5]: what the token at j says about position i
        votes = table[positions[:, None], positions[None, :], tokens[:, None, :]]
        masked = (tokens == MASK_ID).mean(axis=1)[:, None, None]
        return (0.3 + 1.5 * masked) * jnp.tanh(votes.sum(axis=2))

    return logits


@pytest.fixture(scope="session")
def toy_nll(toy_logits: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """The `token_nll` of the toy denoiser."""

    @jax.jit
    def token_nll(noised: Noised) -> jax.Array:
        log_probs = jax.nn.log_softmax(toy_logits(noised.tokens))
        return -jnp.take_along_axis(log_probs, noised.targets[..., None], axis=-1)[..., 0]

    return token_nll
