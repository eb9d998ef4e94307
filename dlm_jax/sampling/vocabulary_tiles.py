"""The head, a tile of the vocabulary at a time, for rules that need the peak of the logits only.

The table of a large vocabulary is read once a step for all wanted positions, and the logits of a
tile are reduced while they are in the cache: [positions, vocab] is never written to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from dlm_jax.sampling.token_rules import Forbidden, Peak, PeakRule, Prediction, merge, peak

Carry = TypeVar("Carry")


@runtime_checkable
class LinearHead(Protocol):
    """A denoiser whose logits are products with the rows of a table, plus a bias."""

    def head_features(self, features: jax.Array) -> jax.Array:
        """[..., embed] of features [..., embed]: what the rows of the table are compared with."""

    def output_embedding(self) -> tuple[jax.Array, jax.Array]:
        """Rows [vocab, embed] and bias [vocab]."""


def predict_by_tiles(
    head: LinearHead,
    features: jax.Array,
    wanted: jax.Array,
    rule: PeakRule,
    forbidden: Forbidden,
    pieces: tuple[int, ...],
    tile: int,
) -> Prediction:
    """Predicts the wanted positions.

    Args:
      head: the model.
      features: [places, embed].
      wanted: bool [places].
      rule: chooses the tokens.
      forbidden: ids of logit -inf.
      pieces: positions that a tile is multiplied with at a time, descending; see `Tiling`.
      tile: rows of the table in a tile.

    Returns:
      Prediction of [places]; token 0 and log-probability 0 where not wanted.
    """
    places = wanted.shape[0]
    pieces = (*(size for size in pieces[:-1] if size <= places), pieces[-1])
    count = wanted.sum()
    order = jnp.argsort(~wanted, stable=True).astype(jnp.int32)
    # Unfilled slots point past the end: gathers clip them, the scatter drops them.
    order = jnp.where(jnp.arange(places) < count, order, places)
    order = jnp.pad(order, (0, pieces[0]), constant_values=places)
    chosen = features[jnp.minimum(order, places - 1)]

    def transform(begin: jax.Array, size: int, hidden: jax.Array) -> jax.Array:
        piece = jax.lax.dynamic_slice_in_dim(chosen, begin, size)
        return jax.lax.dynamic_update_slice_in_dim(hidden, head.head_features(piece), begin, 0)

    hidden = _over_pieces(count, pieces, transform, jnp.zeros_like(chosen))
    peaks = _peaks(head.output_embedding(), hidden, count, forbidden, pieces, tile)
    new = rule.of_peak(peaks)
    nothing = Prediction(jnp.zeros(places, jnp.int32), jnp.zeros(places, jnp.float32))
    return Prediction(
        nothing.tokens.at[order].set(new.tokens, mode="drop"),
        nothing.log_probs.at[order].set(new.log_probs, mode="drop"),
    )


def _peaks(
    output: tuple[jax.Array, jax.Array],
    hidden: jax.Array,
    count: jax.Array,
    forbidden: Forbidden,
    pieces: tuple[int, ...],
    tile: int,
) -> Peak:
    """The peaks [room] of the logits of hidden [room, embed], of which `count` are of interest."""
    table, bias = output
    vocab = table.shape[0]
    tile = min(tile, vocab)

    def one_tile(number: jax.Array, peaks: Peak) -> Peak:
        # The last tile starts early enough to be full; what the one before had too is banned.
        start = jnp.minimum(number * tile, vocab - tile)
        rows = jax.lax.dynamic_slice_in_dim(table, start, tile).astype(hidden.dtype)
        offsets = jax.lax.dynamic_slice_in_dim(bias, start, tile).astype(jnp.float32)
        ids = start + jnp.arange(tile, dtype=jnp.int32)
        offsets = jnp.where(ids < number * tile, -jnp.inf, forbidden.ban(offsets, ids))

        def one_piece(begin: jax.Array, size: int, peaks: Peak) -> Peak:
            piece = jax.lax.dynamic_slice_in_dim(hidden, begin, size)
            products = jnp.einsum("pe,ve->pv", piece, rows, preferred_element_type=jnp.float32)
            new = peak(products + offsets, ids)
            old = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, size), peaks)
            return jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, begin, 0),
                peaks,
                merge(old, new),
            )

        return _over_pieces(count, pieces, one_piece, peaks)

    nothing = Peak.lowest((hidden.shape[0],))
    return jax.lax.fori_loop(0, -(-vocab // tile), one_tile, nothing)


def _over_pieces(
    count: jax.Array,
    sizes: tuple[int, ...],
    visit: Callable[[jax.Array, int, Carry], Carry],
    carry: Carry,
) -> Carry:
    """Calls `visit(begin, size, carry)` until the pieces cover `count`.

    As many of each size as are full or lack less than a quarter, which costs no more than smaller
    ones; the last size for the rest.
    """
    begin = jnp.int32(0)
    for size in sizes:
        left = jnp.maximum(count - begin, 0)
        lacking = size - 1 if size == sizes[-1] else size // 4
        number = (left + lacking) // size

        def body(i: jax.Array, carry: Carry, begin: jax.Array = begin, size: int = size) -> Carry:
            return visit(begin + i * size, size, carry)

        carry = jax.lax.fori_loop(0, number, body, carry)
        begin += number * size
    return carry
