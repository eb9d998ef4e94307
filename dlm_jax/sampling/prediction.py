"""One evaluation of the denoiser, of which a token and a log-probability a position are kept.

The vocabulary has up to 250k rows: logits exist for a few positions at a time, never for the
whole canvas.
"""

from __future__ import annotations

import functools
from typing import Protocol

import jax
import jax.numpy as jnp

from dlm_jax.sampling.canvas import Canvas
from dlm_jax.sampling.tiling import Tiling
from dlm_jax.sampling.token_rules import Forbidden, PeakRule, Prediction, TokenRule, Words
from dlm_jax.sampling.vocabulary_tiles import LinearHead, predict_by_tiles


class Head(Protocol):
    """What turns features into scores of tokens."""

    def logits(self, features: jax.Array) -> jax.Array:
        """float32 [..., vocab] of features [..., embed]."""


class Denoiser(Head, Protocol):
    """What the reverse process knows of a model. It must be a pytree (an NNX module is).

    One that is a `LinearHead` too may be asked for that instead of `logits`; the two must agree.
    """

    def features(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """[batch, length, embed] of int32 [batch, length] each."""


def predict(
    denoiser: Denoiser,
    canvas: Canvas,
    tokens: jax.Array,
    wanted: jax.Array,
    rule: TokenRule,
    words: Words,
    forbidden: Forbidden,
    tiling: Tiling,
) -> Prediction:
    """Evaluates the denoiser and predicts the wanted positions.

    Args:
      denoiser: the model.
      canvas: gives positions and segments.
      tokens: int32 [batch, length], the present state.
      wanted: bool [batch, length]; rows without any are not evaluated (block by block).
      rule: chooses the tokens.
      words: two uint32 [batch, length], random words of each position.
      forbidden: ids of logit -inf.
      tiling: sizes of the pieces.

    Returns:
      Prediction of [batch, length]; token 0 and log-probability 0 where not wanted.
    """
    if tiling.block_tokens is None:
        features = denoiser.features(tokens, canvas.positions, canvas.segment_ids)
        return predict_lanes(denoiser, features, wanted, rule, words, forbidden, tiling)
    features = _features_by_blocks(denoiser, canvas, tokens, wanted.any(axis=-1), tiling)
    features = features.reshape(-1, features.shape[-1])
    # A token rule that draws needs all logits of a position at once.
    if tiling.vocab_tile and isinstance(rule, PeakRule) and isinstance(denoiser, LinearHead):
        pieces, tile = tiling.head_pieces, tiling.vocab_tile
        flat = predict_by_tiles(
            denoiser, features, wanted.reshape(-1), rule, forbidden, pieces, tile
        )
        return Prediction(*(part.reshape(wanted.shape) for part in flat))
    # One lane for the whole batch leaves a single piece of the head partly empty.
    flat = predict_lanes(
        denoiser,
        features[None],
        wanted.reshape(1, -1),
        rule,
        (words[0].reshape(1, -1), words[1].reshape(1, -1)),
        forbidden,
        tiling,
    )
    return Prediction(*(part.reshape(wanted.shape) for part in flat))


def _features_by_blocks(
    denoiser: Denoiser, canvas: Canvas, tokens: jax.Array, needed: jax.Array, tiling: Tiling
) -> jax.Array:
    """[batch, length, embed] features of the needed rows; zeros or anything elsewhere."""
    batch, length = tokens.shape
    inputs = (tokens, canvas.positions, canvas.segment_ids)
    # A row reaches up to its last token that is not padding.
    occupied = jnp.where(inputs[2] > 0, jnp.arange(1, length + 1), 0).max(axis=-1)
    struct = jax.eval_shape(denoiser.features, *(part[:1] for part in inputs))
    # The extra row stands in for the unfilled places of a last block. Were it clipped to the last
    # real row instead, the one block of a single row would depend on nothing in its loop, and XLA
    # would lift the encoder out of the loops of all the widths that have no rows.
    padded = tuple(jnp.pad(part, ((0, 1), (0, 0))) for part in inputs)
    features = jnp.zeros((batch + 1, length, struct.shape[-1]), struct.dtype)
    previous = -1
    for width in tiling.widths(length):
        members = needed & (occupied > previous) & (occupied <= width)
        features = _run_blocks(denoiser, padded, features, members, tiling.rows(width), width)
        previous = width
    return features[:batch]


def _run_blocks(
    denoiser: Denoiser,
    inputs: tuple[jax.Array, ...],
    features: jax.Array,
    members: jax.Array,
    rows: int,
    width: int,
) -> jax.Array:
    """Writes the features of the members [batch], `rows` at a time, cut to `width` tokens."""
    batch = members.shape[0]
    count = members.sum()
    order = jnp.argsort(~members, stable=True).astype(jnp.int32)
    order = jnp.where(jnp.arange(batch) < count, order, batch)
    order = jnp.pad(order, (0, rows), constant_values=batch)

    def block(number: jax.Array, features: jax.Array) -> jax.Array:
        chosen = jax.lax.dynamic_slice_in_dim(order, number * rows, rows)
        cut = [part[chosen, :width] for part in inputs]
        new = denoiser.features(*cut)
        for place in range(rows):
            start = (chosen[place], 0, 0)
            features = jax.lax.dynamic_update_slice(features, new[place : place + 1], start)
        return features

    return jax.lax.fori_loop(0, -(-count // rows), block, features)


def predict_lanes(
    head: Head,
    features: jax.Array,
    wanted: jax.Array,
    rule: TokenRule,
    words: Words,
    forbidden: Forbidden,
    tiling: Tiling,
) -> Prediction:
    """Runs the head on the wanted positions of each lane, a piece of every lane at a time.

    Args:
      head: gives the logits.
      features: [lanes, places, embed].
      wanted: bool [lanes, places].
      rule: chooses the tokens.
      words: two uint32 [lanes, places].
      forbidden: ids of logit -inf.
      tiling: sizes of the pieces.

    Returns:
      Prediction of [lanes, places].
    """
    lanes, places = wanted.shape
    *full_sizes, last_size = (max(1, size // lanes) for size in tiling.head_pieces)
    counts = wanted.sum(axis=-1)
    order = jnp.argsort(~wanted, axis=-1, stable=True).astype(jnp.int32)
    # Unfilled slots point past the end: gathers clip them, scatters drop them.
    order = jnp.where(jnp.arange(places) < counts[:, None], order, places)
    order = jnp.pad(order, ((0, 0), (0, last_size)), constant_values=places)
    lane = jnp.arange(lanes)[:, None]

    def piece(number: jax.Array, result: Prediction, start: jax.Array, size: int) -> Prediction:
        slots = jax.lax.dynamic_slice_in_dim(order, start + number * size, size, axis=1)
        readable = jnp.minimum(slots, places - 1)
        chosen = jnp.take_along_axis(features, readable[..., None], axis=1)
        logits = forbidden.ban(head.logits(chosen))
        slot_words = [jnp.take_along_axis(word, readable, axis=1) for word in words]
        new = rule.choose(logits, (slot_words[0], slot_words[1]))
        return Prediction(
            result.tokens.at[lane, slots].set(new.tokens, mode="drop"),
            result.log_probs.at[lane, slots].set(new.log_probs, mode="drop"),
        )

    nothing = Prediction(jnp.zeros(wanted.shape, jnp.int32), jnp.zeros(wanted.shape, jnp.float32))
    result, start, left = nothing, jnp.int32(0), counts.max()
    for size in full_sizes:
        if size <= places:
            run = functools.partial(piece, start=start, size=size)
            result = jax.lax.fori_loop(0, left // size, run, result)
            start, left = start + left // size * size, left % size
    run = functools.partial(piece, start=start, size=last_size)
    return jax.lax.fori_loop(0, -(-left // last_size), run, result)
