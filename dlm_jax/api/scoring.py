"""What a model makes of texts that are there: likelihoods and logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.api.writing import require_list
from dlm_jax.data.packing import Batch, empty_batch
from dlm_jax.data.table import assemble
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.diffusion.process import AbsorbingProcess
from dlm_jax.errors import UserError
from dlm_jax.models.encoder import Encoder
from dlm_jax.sampling.canvas import LENGTH_MULTIPLE
from dlm_jax.training.scoring import nelbo_of_rows, nll_of_rows


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """NELBO of a response given its prompt.

    Attributes:
        nelbo: nats, an upper bound of -log p(response | prompt) in expectation; of a causal model
            that number itself.
        standard_error: nats, of the Monte-Carlo estimate; 0 for a causal model.
        tokens: scored tokens, `</s>` included.
    """

    nelbo: float
    standard_error: float
    tokens: int


def likelihoods(
    denoiser: Encoder,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    draws: int,
    seed: int,
    row_ids: Sequence[int] | None,
) -> list[Likelihood]:
    """Scores pairs of texts; arguments and errors as `DiffusionLanguageModel.score`."""
    require_list("score", prompts)
    require_list("score", responses)
    identities = range(len(prompts)) if row_ids is None else row_ids
    for name, entries in (("response", responses), ("row_id", identities)):
        if len(entries) != len(prompts):
            raise UserError(
                f"score takes a {name} for each prompt, not {len(entries)} for {len(prompts)}"
            )
    if not prompts:
        return []
    batch = _batch(denoiser, vocabulary, prompts, responses, identities)
    if denoiser.config.causal:
        exact = np.asarray(nll_of_rows(denoiser, batch))
        counts = batch["maskable"].sum(axis=1)
        return [Likelihood(float(nll), 0.0, int(n)) for nll, n in zip(exact, counts)]
    estimate = nelbo_of_rows(
        denoiser,
        batch,
        process=AbsorbingProcess(vocabulary.mask_id, num_timesteps=None),
        draws=draws,
        seed=seed,
    )
    columns = (estimate.nelbo, estimate.standard_error, estimate.tokens)
    return [
        Likelihood(float(nelbo), float(error), int(tokens))
        for nelbo, error, tokens in zip(*(np.asarray(column)[:, 0] for column in columns))
    ]


def _batch(
    denoiser: Encoder,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    responses: Sequence[str],
    identities: Sequence[int],
) -> Batch:
    """One pair a row, whose response is to be scored."""
    encode, most = vocabulary.encode, denoiser.config.max_length
    rows = [
        assemble(encode(prompt), encode(response), vocabulary)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    longest = max(len(tokens) for tokens, _ in rows)
    if longest > most:
        raise UserError(
            f"a prompt and its response take {longest} tokens, and the model takes at most {most}"
        )
    rounded = -(-max(longest, 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    batch = empty_batch(len(rows), min(rounded, most), vocabulary.pad_id)
    for row, (tokens, prompt_length) in enumerate(rows):
        n = len(tokens)
        batch["tokens"][row, :n] = tokens
        batch["maskable"][row, prompt_length:n] = True
        batch["segment_ids"][row, :n] = 1
        batch["positions"][row, :n] = np.arange(n)
        batch["example_ids"][row, :n] = identities[row]
    return batch


def checked_logits(
    denoiser: Encoder, tokens: Any, positions: Any = None, segment_ids: Any = None
) -> jax.Array:
    """Logits of ids that exist; arguments and errors as `DiffusionLanguageModel.logits`."""
    tokens = np.asarray(tokens, np.int32)
    config = denoiser.config
    if tokens.ndim != 2 or tokens.shape[1] > config.max_length:
        raise UserError(
            f"tokens have the shape {list(tokens.shape)}, and must be [batch, length] with a "
            f"length of at most {config.max_length}"
        )
    if positions is None:
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    if segment_ids is None:
        segment_ids = np.ones_like(tokens)
    positions, segment_ids = np.asarray(positions), np.asarray(segment_ids)
    # JAX would take the nearest row of the table for one that is not there.
    for name, ids, rows in (
        ("tokens", tokens, config.vocab_size),
        ("positions", positions, config.max_length),
    ):
        if ids.size and not 0 <= ids.min() <= ids.max() < rows:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise UserError(f"{name} hold {wrong}, and must be at least 0 and below {rows}")
    if not tokens.size:
        return jnp.zeros((*tokens.shape, config.vocab_size), jnp.float32)
    return _logits(denoiser, tokens, positions, segment_ids)


@jax.jit
def _logits(
    denoiser: Encoder, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    return denoiser.logits(denoiser.features(tokens, positions, segment_ids))
