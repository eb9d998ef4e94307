"""Training objectives: from a clean batch to a corrupted one with weights, and to sums of loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.diffusion.counter_random import Purpose, multiply_high, random_words, uniform
from dlm_jax.diffusion.pairing import PAIRINGS, Corruption, corrupt_rows
from dlm_jax.diffusion.process import AbsorbingProcess, Batch
from dlm_jax.diffusion.scores import Scores
from dlm_jax.diffusion.segments import example_sums, example_values, token_counts
from dlm_jax.diffusion.time_sampling import (
    Importance,
    ImportanceState,
    LowDiscrepancy,
    TimeSampling,
)
from dlm_jax.errors import UserError, nearest

WEIGHTINGS = ("linear", "reciprocal", "constant")
REPLACEMENTS = ("80/10/10", "mask")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noised:
    """A corrupted batch; arrays are [rows, length], pairs stand in the upper and lower half.

    Attributes:
      tokens: int32, what the denoiser sees.
      targets: int32, the clean tokens.
      positions: int32, 0-based within each example.
      segment_ids: int32, 0 on padding.
      example_ids: int32 or uint32, identity of each token's example.
      maskable: bool, the tokens that this draw could have absorbed.
      absorbed: bool, the tokens with loss.
      weight: float32, factor of the negative log-likelihood, 0 where not absorbed.
      smoothing_weight: float32, factor of the mean over the vocabulary of -log p.
      time: float32, time of each token's example, 0 on padding.
      weight_sum: float32 scalar, what the summed loss is to be divided by.
      sequences: float32 scalar, number of (example, draw) pairs with a maskable token.
    """

    tokens: jax.Array
    targets: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    example_ids: jax.Array
    maskable: jax.Array
    absorbed: jax.Array
    weight: jax.Array
    smoothing_weight: jax.Array
    time: jax.Array
    weight_sum: jax.Array
    sequences: jax.Array


def loss_and_metrics(
    noised: Noised, scores: Scores
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(loss_sum, weight_sum, metrics): all float32 scalars that micro-batches and devices add.

    The loss is ``loss_sum / weight_sum`` of the added sums. Metrics, each a sum: 'nll_sum' (nats,
    unweighted), 'absorbed_tokens', 'correct', 'maskable_tokens', 'sequences'.
    """
    metrics = {
        "nll_sum": scores.nll.sum(),
        "absorbed_tokens": noised.absorbed.sum().astype(jnp.float32),
        "correct": (scores.correct & noised.absorbed).sum().astype(jnp.float32),
        "maskable_tokens": noised.maskable.sum().astype(jnp.float32),
        "sequences": noised.sequences,
    }
    return scores.loss_sum, noised.weight_sum, metrics


def loss_weight(process: AbsorbingProcess, weighting: str, t: jax.Array) -> jax.Array:
    """w(t) of the diffusion loss.

    With T steps, s = t·T in 1..T: 'linear' T - (s - 1), 'constant' T, 'reciprocal'
    T·(α_{s-1} - α_s)/(1 - α_s), the exact NELBO, which is T/s for the linear schedule.
    In continuous time, the limits per step: 1 - t, 1 and -α'(t)/(1 - α(t)).
    Source: Ye et al. 2023 App. A.1; Zheng et al. 2023 (RDM).

    Args:
      process: gives the schedule and T.
      weighting: one of `WEIGHTINGS`.
      t: float32 in (0, 1].

    Returns:
      float32 of the shape of `t`.
    """
    steps = process.num_timesteps
    if weighting == "constant":
        return jnp.full_like(t, steps or 1)
    if weighting == "linear":
        return 1.0 - t if steps is None else steps + 1.0 - jnp.round(t * steps)
    if steps is None:
        return process.schedule.nelbo_weight(t)
    return steps * process.schedule.unmasking_probability(t, 1.0 / steps)


@dataclasses.dataclass(frozen=True)
class DiffusionObjective:
    """The reweighted diffusion loss of Ye et al. 2023 and its relatives.

    Over rows r (one per example and draw, all counting equally) with N_r maskable tokens of which
    M_r are absorbed at time t_r, and label smoothing ε:

        L = mean_r 1/N_r · Σ_{i in M_r} ( (1-ε)·w(t_r)·nll_i + ε·T·mean_v(-log p_i(v)) )

    (T = 1 in continuous time.) With the weighting 'reciprocal' it is an unbiased estimate of the
    NELBO per maskable token. Packed examples are each a row in this sense.

    Attributes:
      process: the forward process.
      weighting: 'linear', 'reciprocal' or 'constant', see `loss_weight`.
      pairing: 'single', 'coupled', 'two_step', 'two_sample' or 'fixed_ratio'; all but the first
        double the rows, see `pairing.corrupt_rows`.
      time_sampling: `LowDiscrepancy()`, `IID()` or `Importance(...)`; not used by 'fixed_ratio'.
      label_smoothing: ε in [0, 1).
      fixed_ratio: masked fraction of time, in (0, 1], used by that pairing only.
    """

    process: AbsorbingProcess
    weighting: str = "linear"
    pairing: str = "coupled"
    time_sampling: TimeSampling = LowDiscrepancy()
    label_smoothing: float = 0.0
    fixed_ratio: float = 0.15

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of the documented range."""
        name = type(self).__name__
        for field, names in (("weighting", WEIGHTINGS), ("pairing", PAIRINGS)):
            value = getattr(self, field)
            if value not in names:
                raise UserError(
                    f"{name}.{field}={value!r} is none of {', '.join(names)}"
                    f"{nearest(str(value), names)}"
                )
        if not hasattr(self.time_sampling, "times"):
            raise UserError(
                f"{name}.time_sampling={self.time_sampling!r} must be LowDiscrepancy(), IID() or"
                " Importance(...) (time_sampling_by_name makes one of a name)"
            )
        if isinstance(self.time_sampling, Importance):
            self.time_sampling.init(self.process.num_timesteps)
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"{name}.label_smoothing={self.label_smoothing!r} must lie in [0, 1)")
        if not 0 < self.fixed_ratio <= 1:
            raise UserError(f"{name}.fixed_ratio={self.fixed_ratio!r} must lie in (0, 1]")

    @property
    def attention_pattern(self) -> str:
        """What the denoiser has to see: what is masked is to be read off both sides."""
        return "bidirectional"

    @property
    def rows_per_example(self) -> int:
        """Draws per example and step: forward passes per clean row."""
        return 1 if self.pairing == "single" else 2

    def init_time_state(self) -> ImportanceState | None:
        """The empty table of importance sampling, None for the other time samplings."""
        if isinstance(self.time_sampling, Importance):
            return self.time_sampling.init(self.process.num_timesteps)
        return None

    def noise(
        self,
        batch: Batch,
        key: jax.Array,
        draw: jax.typing.ArrayLike = 0,
        time_state: ImportanceState | None = None,
    ) -> Noised:
        """Corrupts a batch of the contract, all [rows, length].

        Args:
          batch: 'tokens', 'maskable', 'segment_ids', 'positions', 'example_ids'.
          key: threefry2x32 key of the run.
          draw: number of the draw, a scalar; 0 where example ids never repeat.
          time_state: table of importance sampling.

        Returns:
          A `Noised` of ``rows_per_example * rows`` rows; 'weight_sum' counts (example, draw) pairs
          with at least one maskable token.
        """
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        corruptions = corrupt_rows(
            self.process,
            self.pairing,
            self.time_sampling,
            self.fixed_ratio,
            batch,
            key,
            draw,
            time_state,
        )
        maskable = self.process.maskable(batch, key, draw)
        counts, sequences = token_counts(maskable, batch["segment_ids"])
        stacked = Corruption(*(jnp.concatenate(arrays) for arrays in zip(*corruptions)))

        def repeat(array: jax.Array) -> jax.Array:
            return jnp.concatenate([array] * len(corruptions))

        smoothing = self.label_smoothing
        scale = stacked.importance / repeat(jnp.maximum(counts, 1)).astype(jnp.float32)
        weight = (1 - smoothing) * loss_weight(self.process, self.weighting, stacked.time) * scale
        smoothing_weight = smoothing * (self.process.num_timesteps or 1) * scale
        return Noised(
            tokens=stacked.tokens,
            targets=repeat(batch["tokens"]),
            positions=repeat(batch["positions"]),
            segment_ids=repeat(batch["segment_ids"]),
            example_ids=repeat(batch["example_ids"]),
            maskable=repeat(maskable),
            absorbed=stacked.absorbed,
            weight=jnp.where(stacked.absorbed, weight, 0.0),
            smoothing_weight=jnp.where(stacked.absorbed, smoothing_weight, 0.0),
            time=jnp.where(repeat(batch["segment_ids"]) > 0, stacked.time, 0.0),
            weight_sum=sequences * len(corruptions),
            sequences=sequences * len(corruptions),
        )

    def loss(
        self, noised: Noised, scores: Scores
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """See `loss_and_metrics`; ``loss_sum / weight_sum`` is L of the class."""
        return loss_and_metrics(noised, scores)

    def update_time_state(
        self, state: ImportanceState | None, noised: Noised, nll: jax.Array
    ) -> ImportanceState | None:
        """Enters the losses of a step into the table of importance sampling.

        Args:
          state: the table that `noise` was called with.
          noised: what `noise` returned.
          nll: [rows, length] float32, ``Scores.nll``.

        Returns:
          The new table, or `state` itself when the time sampling keeps none.
        """
        if state is None or not isinstance(self.time_sampling, Importance):
            return state
        ids, segments = noised.segment_ids, noised.segment_ids.shape[1] + 1
        observed = example_sums(noised.maskable, ids, segments).ravel() > 0
        t = jnp.where(observed, example_values(noised.time, ids, segments).ravel(), 1.0)
        losses = example_sums(noised.weight * nll, ids, segments).ravel()
        losses = losses / self.time_sampling.importance_of(state, t)
        return self.time_sampling.update(state, t, losses, observed)


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelObjective:
    """Plain masked language modelling (Devlin et al. 2019), to pretrain or warm up a denoiser.

    Each maskable token is selected with probability `mask_rate`; the loss is the mean over the
    selected tokens of the whole batch: the weight of each is 1 and 'weight_sum' is their number.

    Attributes:
      mask_id: id of the mask token.
      vocab_size: number of ids to draw replacements from.
      mask_rate: probability of selection, in (0, 1].
      replacement: '80/10/10' a selected token becomes the mask in 80%, a random token in 10%, and
        stays in 10% of cases; 'mask' it always becomes the mask.
      special_ids: ids which are never selected and never serve as a random replacement (the mask
        never does either).
    """

    mask_id: int
    vocab_size: int
    mask_rate: float = 0.15
    replacement: str = "80/10/10"
    special_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of the documented range."""
        name = type(self).__name__
        if not 0 < self.mask_rate <= 1:
            raise UserError(f"{name}.mask_rate={self.mask_rate!r} must lie in (0, 1]")
        if self.replacement not in REPLACEMENTS:
            raise UserError(
                f"{name}.replacement={self.replacement!r} is none of {', '.join(REPLACEMENTS)}"
                f"{nearest(str(self.replacement), REPLACEMENTS)}"
            )
        for field, ids in (("mask_id", (self.mask_id,)), ("special_ids", self.special_ids)):
            for token_id in ids:
                if not 0 <= token_id < self.vocab_size:
                    raise UserError(
                        f"{name}.{field}={getattr(self, field)!r} must be ids below"
                        f" vocab_size={self.vocab_size!r}"
                    )
        if self.vocab_size <= len(self._excluded_ids()):
            raise UserError(
                f"{name}.special_ids={self.special_ids!r} leave no token of"
                f" vocab_size={self.vocab_size!r} to draw"
            )

    @property
    def attention_pattern(self) -> str:
        """What the denoiser has to see: what is masked is to be read off both sides."""
        return "bidirectional"

    @property
    def rows_per_example(self) -> int:
        """Draws per example and step: forward passes per clean row."""
        return 1

    def init_time_state(self) -> None:
        """There is no table of times."""
        return

    def noise(
        self,
        batch: Batch,
        key: jax.Array,
        draw: jax.typing.ArrayLike = 0,
        time_state: ImportanceState | None = None,
    ) -> Noised:
        """Corrupts a batch of the contract; see `DiffusionObjective.noise`.

        `time_state` is not used; ``time`` is the mask rate; 'weight_sum' is the number of selected
        tokens, which may be 0 for a tiny batch.
        """
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        maskable = batch["maskable"] & (segment_ids > 0)
        for token_id in self._excluded_ids():
            maskable &= tokens != token_id
        ids, positions = batch["example_ids"], batch["positions"]
        selection, kind = random_words(key, Purpose.SELECTION, draw, ids, positions)
        selected = maskable & (uniform(selection) < self.mask_rate)
        replaced = jnp.full_like(tokens, self.mask_id)
        if self.replacement == "80/10/10":
            words, _ = random_words(key, Purpose.REPLACEMENT, draw, ids, positions)
            replaced = jnp.where(uniform(kind) < 0.8, replaced, self._random_tokens(words))
            replaced = jnp.where(uniform(kind) < 0.9, replaced, tokens)
        _, sequences = token_counts(maskable, segment_ids)
        weight = selected.astype(jnp.float32)
        return Noised(
            tokens=jnp.where(selected, replaced, tokens),
            targets=tokens,
            positions=positions,
            segment_ids=segment_ids,
            example_ids=ids,
            maskable=maskable,
            absorbed=selected,
            weight=weight,
            smoothing_weight=jnp.zeros_like(weight),
            time=jnp.where(segment_ids > 0, np.float32(self.mask_rate), np.float32(0)),
            weight_sum=weight.sum(),
            sequences=sequences,
        )

    def loss(
        self, noised: Noised, scores: Scores
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """See `loss_and_metrics`; ``loss_sum / weight_sum`` is the mean over selected tokens."""
        return loss_and_metrics(noised, scores)

    def update_time_state(
        self, state: ImportanceState | None, noised: Noised, nll: jax.Array
    ) -> ImportanceState | None:
        """Returns `state`: there is no table of times."""
        return state

    def _excluded_ids(self) -> list[int]:
        return sorted({*self.special_ids, self.mask_id})

    def _random_tokens(self, words: jax.Array) -> jax.Array:
        excluded = self._excluded_ids()
        token = multiply_high(words, self.vocab_size - len(excluded)).astype(jnp.int32)
        for token_id in excluded:
            token += token >= token_id
        return token
