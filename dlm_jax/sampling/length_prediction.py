"""Which lengths an answer may have: the classes that a length predictor scores, as candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.sampling.canvas import LENGTH_MULTIPLE
from dlm_jax.sampling.prediction import Denoiser
from dlm_jax.sampling.tiling import Tiling, default_tiling

# Prompts at a time where a whole batch is computed at once.
_ROWS = 64

Beam = list[tuple[int, float]]  # lengths in tokens, with their log-probabilities in nats


class Predictor(Protocol):
    """What decoding knows of a length predictor. It must be a pytree (an NNX module is)."""

    def __call__(self, features: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """float32 logits [batch, classes] of features [batch, length, embed]."""


def length_log_probs(
    denoiser: Denoiser,
    predictor: Predictor,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_length: int,
    tiling: Tiling | None = None,
) -> np.ndarray:
    """Log-probability of every length of an answer; that of a prompt depends on nothing else.

    Args:
      denoiser: gives the features.
      predictor: scores them.
      prompts: ids of each prompt, `<s>` included, `</s>` not.
      pad_id: id on padding.
      max_length: the longest row that the denoiser takes, in tokens.
      tiling: sizes of the pieces of work; by default right for the device.

    Returns:
      float32 [prompts, classes]; entry c is that of c + 1 tokens, `</s>` not counted.
    """
    if not prompts:
        return np.zeros((0, 0), np.float32)
    tiling = tiling or default_tiling()
    widths = np.array(_widths(tiling, max_length))
    sizes = np.array([len(prompt) for prompt in prompts], np.int64)
    own = widths[np.searchsorted(widths, np.minimum(sizes, max_length))]
    found: dict[int, np.ndarray] = {}
    for width in np.unique(own).tolist():
        members = np.flatnonzero(own == width).tolist()
        # Blocks of one shape, whatever their number: then the floats of a row are its own.
        rows = _ROWS if tiling.block_tokens is None else tiling.rows(width)
        for begin in range(0, len(members), rows):
            chosen = members[begin : begin + rows]
            block = _block([prompts[i] for i in chosen], rows, width, pad_id)
            values = np.asarray(_log_probs(denoiser, predictor, *block))
            found.update(zip(chosen, values))
    return np.stack([found[i] for i in range(len(prompts))])


def _widths(tiling: Tiling, max_length: int) -> tuple[int, ...]:
    if tiling.block_tokens is not None:
        return tiling.widths(max_length)
    return (*range(LENGTH_MULTIPLE, max_length, LENGTH_MULTIPLE), max_length)


def _block(
    prompts: Sequence[Sequence[int]], rows: int, width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments [rows, width] of prompts and of empty rows after them."""
    tokens = np.full((rows, width), pad_id, np.int32)
    segments = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        segments[row, : len(prompt)] = 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    return tokens, positions, segments


@jax.jit
def _log_probs(
    denoiser: Denoiser,
    predictor: Predictor,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    features = denoiser.features(tokens, positions, segment_ids)
    return jax.nn.log_softmax(predictor(features, segment_ids).astype(jnp.float32), axis=-1)


def length_beam(log_probs: Any, size: int, room: int) -> Beam:
    """The most probable lengths of an answer, most probable first, the shorter of equal ones.

    What is longer than there is room for counts as exactly as long as that: the beam is that of
    min(length, room), and names no length twice.

    Args:
      log_probs: [classes], see `length_log_probs`.
      size: how many lengths; fewer where there are fewer.
      room: most tokens of the answer, at least 1.

    Returns:
      [(length, log-probability)].
    """
    values = np.asarray(log_probs, np.float64)
    if room < len(values):
        values = np.append(values[: room - 1], np.logaddexp.reduce(values[room - 1 :]))
    best = np.argsort(-values, kind="stable")[:size]
    return [(int(index) + 1, float(values[index])) for index in best]
