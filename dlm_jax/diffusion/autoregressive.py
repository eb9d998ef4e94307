"""Next-token prediction, the baseline that diffusion is compared with: no noise and no mask."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dlm_jax.diffusion.objectives import Noised, loss_and_metrics
from dlm_jax.diffusion.process import Batch
from dlm_jax.diffusion.scores import Scores
from dlm_jax.diffusion.segments import token_counts
from dlm_jax.diffusion.time_sampling import ImportanceState
from dlm_jax.errors import UserError, nearest

AVERAGES = ("sequences", "tokens")


@dataclasses.dataclass(frozen=True)
class AutoregressiveObjective:
    """Cross-entropy of each token of the response given all tokens before it.

    Over sequences r with N_r maskable tokens that have a predecessor, and label smoothing ε:

        L = mean_r 1/N_r · Σ_i ( (1-ε)·nll_i + ε·mean_v(-log p_i(v)) ),   nll_i = -log p(x_i | x_<i)

    as the diffusion objective weighs sequences. With the average over 'tokens' all tokens of a
    batch weigh the same instead. Packed examples are each a sequence in this sense.

    The prediction of a token is read where its predecessor stands: of what `noise` returns, the
    entry of a place is about the token after it, and the first token of a sequence has none.

    Attributes:
      average: 'sequences' or 'tokens'.
      label_smoothing: ε in [0, 1).
    """

    average: str = "sequences"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of the documented range."""
        name = type(self).__name__
        if self.average not in AVERAGES:
            raise UserError(
                f"{name}.average={self.average!r} is none of {', '.join(AVERAGES)}"
                f"{nearest(str(self.average), AVERAGES)}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"{name}.label_smoothing={self.label_smoothing!r} must lie in [0, 1)")

    @property
    def attention_pattern(self) -> str:
        """What the model has to see: a token that sees its successor need not predict it."""
        return "causal"

    @property
    def rows_per_example(self) -> int:
        """Forward passes per clean row."""
        return 1

    def init_time_state(self) -> None:
        """There is no table of times."""
        return

    def noise(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        draw: jax.typing.ArrayLike = 0,
        time_state: ImportanceState | None = None,
    ) -> Noised:
        """Turns a batch of the contract, all [rows, length], into what is read and predicted.

        Args:
          batch: 'tokens', 'maskable', 'segment_ids', 'positions', 'example_ids'.
          key: not used: nothing is drawn.
          draw: not used.
          time_state: not used.

        Returns:
          The clean tokens, and at each place the successor as target; 'absorbed' marks the places
          whose successor is maskable and of the same example.
        """
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        segment_ids = batch["segment_ids"]
        follows = (_next(segment_ids) == segment_ids) & (segment_ids > 0)
        predicted = follows & _next(batch["maskable"])
        counts, sequences = token_counts(predicted, segment_ids)
        weight = predicted.astype(jnp.float32)
        if self.average == "sequences":
            weight /= jnp.maximum(counts, 1)
        return Noised(
            tokens=batch["tokens"],
            targets=_next(batch["tokens"]),
            positions=batch["positions"],
            segment_ids=segment_ids,
            example_ids=batch["example_ids"],
            maskable=predicted,
            absorbed=predicted,
            weight=(1 - self.label_smoothing) * weight,
            smoothing_weight=self.label_smoothing * weight,
            time=jnp.zeros(segment_ids.shape, jnp.float32),
            weight_sum=weight.sum() if self.average == "tokens" else sequences,
            sequences=sequences,
        )

    def loss(
        self, noised: Noised, scores: Scores
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """See `loss_and_metrics`; ``loss_sum / weight_sum`` is L of the class."""
        return loss_and_metrics(noised, scores)

    def update_time_state(
        self, state: ImportanceState | None, noised: Noised, nll: jax.Array
    ) -> ImportanceState | None:
        """Returns `state`: there is no table of times."""
        return state


def _next(values: jax.Array) -> jax.Array:
    """[rows, length]: at each place what stands at the next one; at the last one zero."""
    return jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
