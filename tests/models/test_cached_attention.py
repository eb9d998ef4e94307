"""A causal encoder that reads a row in parts computes what it does with the whole row at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.models.config import SIZES
from dlm_jax.models.encoder import Encoder, abstract_parameters, from_parameters

POST = dataclasses.replace(SIZES["test"], attention_pattern="causal", max_positions=102)
PRE = dataclasses.replace(POST, norm_placement="pre", family="xlm-roberta-xl")
ROWS, LENGTH = 3, 90

extend = jax.jit(Encoder.extend)


def encoder_of(config) -> Encoder:
    random = np.random.default_rng(0)
    return from_parameters(
        config,
        jax.tree.map(
            lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.2, jnp.float32),
            abstract_parameters(config),
        ),
    )


@pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])
def test_parts_of_any_size_equal_the_whole(config) -> None:
    encoder = encoder_of(config)
    tokens = np.random.default_rng(1).integers(3, config.vocab_size, (ROWS, LENGTH))
    tokens = jnp.asarray(tokens, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    whole = np.asarray(encoder.features(tokens, places, jnp.ones_like(tokens)))
    assert whole.std() > 0.2
    # Rows 1 to 3 of a cache of five.
    cache = encoder.empty_cache(5, LENGTH)
    begin = 0
    for end in (57, *range(58, 71), LENGTH):
        part = slice(begin, end)
        features, cache = extend(encoder, tokens[:, part], places[:, part], cache, 1)
        np.testing.assert_allclose(features, whole[:, part], atol=2e-5)
        begin = end
    untouched = np.asarray(cache)[:, [0, 4]]
    assert (untouched == 0).all()


def test_rows_stand_at_places_of_their_own_and_later_ones_are_not_read() -> None:
    encoder = encoder_of(POST)
    random = np.random.default_rng(2)
    tokens = jnp.asarray(random.integers(3, 96, (ROWS, LENGTH)), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    whole = np.asarray(encoder.features(tokens, places, jnp.ones_like(tokens)))
    # All of the cache is filled, with noise from the last place of each row on.
    last = jnp.asarray([[5], [88], [64]])
    spoilt = jnp.where(places >= last, 4, tokens)
    _, cache = extend(encoder, spoilt, places, encoder.empty_cache(ROWS, LENGTH), 0)
    current = jnp.take_along_axis(tokens, last, axis=1)
    features, _ = extend(encoder, current, last, cache, 0)
    np.testing.assert_allclose(
        features[:, 0], whole[np.arange(ROWS), np.asarray(last)[:, 0]], atol=2e-5
    )
    # A row's bits do not depend on how far the others have come.
    together, _ = extend(encoder, current, jnp.asarray([[5], [5], [5]]), cache, 0)
    np.testing.assert_array_equal(together[0], features[0])
