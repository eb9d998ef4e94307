"""Left-to-right decoding of causal models, by the loop that runs every other sampler."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from dlm_jax.errors import UserError
from dlm_jax.sampling.canvas import Canvas
from dlm_jax.sampling.prediction import Head, predict_lanes
from dlm_jax.sampling.tiling import Tiling
from dlm_jax.sampling.token_rules import Forbidden, Prediction, TokenRule, Words

AUTO = "auto"
STRATEGY = "autoregressive"
DENOISING_STRATEGY = "reparam-uncond-deterministic-cosine"

# Tokens of a prompt that are read at a time, and rows of a block that reads one token each.
_PREFILL_WIDTH = 64
_STEP_ROWS = 16


class CausalModel(Head, Protocol):
    """What decoding knows of a causal model. It must be a pytree (an NNX module is)."""

    def empty_cache(self, rows: int, length: int) -> jax.Array:
        """A cache of rows of at least so many places."""

    def extend(
        self, tokens: jax.Array, places: jax.Array, cache: jax.Array, first_row: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Features [rows, width, embed] of int32 [rows, width] each, and the cache with them in."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NextToken:
    """A causal model that keeps what it has read: a prompt once, then one token of a row a step.

    On a CPU the rows go through it in blocks of one shape, so that no bit of a row depends on how
    many there are.

    Args:
      model: the causal model.
    """

    model: CausalModel

    def prefill(self, canvas: Canvas, tiling: Tiling) -> jax.Array:
        """Reads what is given, up to the first editable place of each row.

        Args:
          canvas: one sequence a row, all that is to be written at its end.
          tiling: sizes of the pieces.

        Returns:
          The cache.
        """
        batch, length = canvas.shape
        rows = _prefill_rows(tiling, batch)
        whole_blocks = (-(-batch // size) * size for size in (rows, _step_rows(tiling, batch)))
        cache = self.model.empty_cache(max(whole_blocks), length)
        given = jnp.argmax(canvas.editable, axis=-1)
        tokens = jnp.pad(canvas.tokens, ((0, 0), (0, -length % _PREFILL_WIDTH)))

        def block(number: jax.Array, cache: jax.Array) -> jax.Array:
            first_row = number * rows
            chosen = _rows_of_block(first_row, rows, batch)
            mine = tokens[chosen]

            def piece(index: jax.Array, cache: jax.Array) -> jax.Array:
                begin = index * _PREFILL_WIDTH
                part = jax.lax.dynamic_slice_in_dim(mine, begin, _PREFILL_WIDTH, axis=1)
                places = jnp.broadcast_to(begin + jnp.arange(_PREFILL_WIDTH), part.shape)
                return self.model.extend(part, places, cache, first_row)[1]

            # The last given token is read by the first step, which is about its successor.
            pieces = -(-(given[chosen].max() - 1) // _PREFILL_WIDTH)
            return jax.lax.fori_loop(0, pieces, piece, cache)

        return jax.lax.fori_loop(0, -(-batch // rows), block, cache)

    def predict(
        self,
        cache: jax.Array,
        tokens: jax.Array,
        wanted: jax.Array,
        rule: TokenRule,
        words: Words,
        forbidden: Forbidden,
        tiling: Tiling,
    ) -> tuple[Prediction, jax.Array]:
        """Predicts the wanted position of each row from the token before it.

        Args:
          cache: with all tokens but that one.
          tokens: int32 [batch, length], the present state.
          wanted: bool [batch, length], at most one a row.
          rule: chooses the tokens.
          words: two uint32 [batch, length], random words of each position.
          forbidden: ids of logit -inf.
          tiling: sizes of the pieces.

        Returns:
          Prediction of [batch, length], token 0 and log-probability 0 where not wanted; the cache.
        """
        needed = wanted.any(axis=-1)
        place = jnp.argmax(wanted, axis=-1)[:, None]
        before = jnp.maximum(place - 1, 0)
        last = jnp.take_along_axis(tokens, before, axis=1)
        features, cache = self._features(cache, last, before, needed, tiling)
        first, second = (jnp.take_along_axis(word, place, axis=1).reshape(1, -1) for word in words)
        flat = predict_lanes(
            self.model, features[None], needed[None], rule, (first, second), forbidden, tiling
        )
        found = (jnp.where(wanted, part.reshape(-1, 1), 0) for part in flat)
        return Prediction(*found), cache

    def _features(
        self,
        cache: jax.Array,
        last: jax.Array,
        places: jax.Array,
        needed: jax.Array,
        tiling: Tiling,
    ) -> tuple[jax.Array, jax.Array]:
        """[batch, embed] features of the tokens `last` [batch, 1] at `places`, and the cache."""
        batch = needed.shape[0]
        rows = _step_rows(tiling, batch)
        arguments = (last[:1], places[:1], cache, jnp.int32(0))
        struct = jax.eval_shape(self.model.extend, *arguments)[0]
        features = jnp.zeros((cache.shape[1], struct.shape[-1]), struct.dtype)
        unfinished = jnp.pad(needed, (0, -batch % rows)).reshape(-1, rows).any(axis=-1)
        order = jnp.argsort(~unfinished, stable=True)

        def block(
            number: jax.Array, state: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            features, cache = state
            first_row = order[number] * rows
            chosen = _rows_of_block(first_row, rows, batch)
            new, cache = self.model.extend(last[chosen], places[chosen], cache, first_row)
            return jax.lax.dynamic_update_slice(features, new[:, 0], (first_row, 0)), cache

        features, cache = jax.lax.fori_loop(0, unfinished.sum(), block, (features, cache))
        return features[:batch], cache


def _prefill_rows(tiling: Tiling, batch: int) -> int:
    return batch if tiling.block_tokens is None else tiling.rows(_PREFILL_WIDTH)


def _step_rows(tiling: Tiling, batch: int) -> int:
    return batch if tiling.block_tokens is None else _STEP_ROWS


def _rows_of_block(first_row: jax.Array, rows: int, batch: int) -> jax.Array:
    """int32 [rows]; the last row of the batch stands in for those that are not there."""
    return jnp.minimum(first_row + jnp.arange(rows), batch - 1)


def strategy_for(*, causal: bool, asked: str) -> str:
    """The decoding strategy of a model.

    Args:
      causal: whether the model sees only what stands to the left.
      asked: name of a strategy, or 'auto' for the default of such models.

    Raises:
      UserError: the strategy is not for such models.
    """
    if asked == AUTO:
        return STRATEGY if causal else DENOISING_STRATEGY
    if causal and asked != STRATEGY:
        raise UserError(
            f"The decoding strategy '{asked}' needs a model that sees both sides, and this one is "
            f"causal: leave the strategy out, or take '{STRATEGY}'."
        )
    if not causal and asked == STRATEGY:
        raise UserError(
            f"The decoding strategy '{STRATEGY}' needs a causal model, and this one sees both "
            "sides: 'left-to-right' writes one token a step with such a model."
        )
    return asked
