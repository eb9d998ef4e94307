"""The absorbing forward process and the corruption of a batch by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dlm_jax.diffusion.counter_random import Purpose, random_words, uniform
from dlm_jax.diffusion.schedules import Linear, Schedule
from dlm_jax.diffusion.segments import before_first_selected
from dlm_jax.errors import UserError, nearest

Batch = Mapping[str, jax.Array]

PROMPT_CORRUPTIONS = ("none", "drop", "joint")
MAX_TIMESTEPS = 1 << 16


@dataclasses.dataclass(frozen=True)
class AbsorbingProcess:
    """Discrete diffusion whose noise is one absorbing state, the mask token.

    Each token is absorbed independently: q(x_t | x_0) = α(t)·x_0 + (1 - α(t))·mask (Austin et al.
    2021). All randomness is a function of (key, draw, example id, position).

    Attributes:
      mask_id: id of the absorbing state.
      schedule: α(t).
      num_timesteps: T, the times are then {1/T, ..., 1}; None for continuous time in (0, 1].
      prompt_corruption: what happens to the prompt, which is all of an example that precedes its
        first maskable token. 'none': it stays clean. 'drop': with probability `prompt_rate` the
        whole of it is masked, without loss on it (classifier-free guidance). 'joint': with
        probability `prompt_rate` it is noised like the response and gets loss (infilling).
      prompt_rate: probability per example, in [0, 1].
      protected_ids: token ids of a prompt which are never absorbed, for instance that of ``<s>``.
    """

    mask_id: int
    schedule: Schedule = Linear()
    num_timesteps: int | None = 50
    prompt_corruption: str = "none"
    prompt_rate: float = 0.0
    protected_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of the documented range."""
        name = type(self).__name__
        if self.mask_id < 0:
            raise UserError(f"{name}.mask_id={self.mask_id!r} must be a token id, 0 or more")
        if isinstance(self.schedule, str) or not hasattr(self.schedule, "mask_probability"):
            raise UserError(
                f"{name}.schedule={self.schedule!r} must be a schedule object"
                " (Linear(), Cosine(), Polynomial(exponent); schedule_by_name makes one of a name)"
            )
        steps = self.num_timesteps
        if steps is not None and not (isinstance(steps, int) and 1 <= steps < MAX_TIMESTEPS):
            raise UserError(
                f"{name}.num_timesteps={steps!r} must be None (continuous time) or an integer"
                f" between 1 and {MAX_TIMESTEPS - 1}"
            )
        if self.prompt_corruption not in PROMPT_CORRUPTIONS:
            raise UserError(
                f"{name}.prompt_corruption={self.prompt_corruption!r} is none of"
                f" {', '.join(PROMPT_CORRUPTIONS)}"
                f"{nearest(str(self.prompt_corruption), PROMPT_CORRUPTIONS)}"
            )
        if not 0 <= self.prompt_rate <= 1:
            raise UserError(f"{name}.prompt_rate={self.prompt_rate!r} must lie between 0 and 1")
        if self.prompt_corruption == "none" and self.prompt_rate != 0:
            raise UserError(
                f"{name}.prompt_rate={self.prompt_rate!r} has no effect with"
                " prompt_corruption='none' (choose 'drop' or 'joint')"
            )

    def mask_probability(self, t: jax.Array) -> jax.Array:
        """1 - α(t), the probability that a token is absorbed at time t; float32."""
        return self.schedule.mask_probability(t)

    def maskable(self, batch: Batch, key: jax.Array, draw: jax.typing.ArrayLike = 0) -> jax.Array:
        """[rows, length] bool: the tokens that this draw may absorb with loss on them.

        ``batch['maskable']``, and under 'joint' also the prompts that were chosen.
        """
        response = batch["maskable"] & (batch["segment_ids"] > 0)
        if self.prompt_corruption != "joint":
            return response
        return response | self._chosen_prompts(batch, key, draw)

    def absorb(
        self,
        batch: Batch,
        t: jax.Array,
        key: jax.Array,
        draw: jax.typing.ArrayLike = 0,
        sample: int = 0,
    ) -> jax.Array:
        """Which tokens are absorbed, with loss on them, at time t.

        Args:
          batch: the batch contract, [rows, length].
          t: float32, broadcasts to [rows, length]; equal for the tokens of an example.
          key: threefry2x32 key of the run.
          draw: number of the draw, a scalar.
          sample: 0 or 1, two independent masks of one draw.

        Returns:
          [rows, length] bool.
        """
        words = self._corruption_words(batch, key, draw)[sample]
        return self.maskable(batch, key, draw) & (uniform(words) < self.mask_probability(t))

    def absorb_coupled(
        self,
        batch: Batch,
        late: jax.Array,
        early: jax.Array,
        key: jax.Array,
        draw: jax.typing.ArrayLike = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Masks at two times, the earlier a subset of the later.

        A token absorbed at `late` stays absorbed at `early` with probability
        (1 - α(early)) / (1 - α(late)), which leaves the marginal of both times as it is. Where the
        times are equal the second mask is an independent redraw.
        Source: coupled sampling of Zheng et al. 2023 (RDM), as used by Ye et al. 2023.

        Args:
          batch: the batch contract, [rows, length].
          late: float32, broadcasts to [rows, length].
          early: float32, at most `late`.
          key: threefry2x32 key of the run.
          draw: number of the draw, a scalar.

        Returns:
          (absorbed at `late`, absorbed at `early`), [rows, length] bool.
        """
        first, second = map(uniform, self._corruption_words(batch, key, draw))
        maskable = self.maskable(batch, key, draw)
        p_late, p_early = self.mask_probability(late), self.mask_probability(early)
        absorbed = maskable & (first < p_late)
        redrawn = maskable & (second < p_late)
        # A product, for division may round differently in vectors of another length.
        thinned = absorbed & (second * p_late < p_early)
        return absorbed, jnp.where(late == early, redrawn, thinned)

    def noisy_tokens(
        self,
        batch: Batch,
        absorbed: jax.Array,
        key: jax.Array,
        draw: jax.typing.ArrayLike = 0,
    ) -> jax.Array:
        """[rows, length] int32: clean tokens with the absorbed ones and dropped prompts masked."""
        hidden = absorbed
        if self.prompt_corruption == "drop":
            hidden = hidden | self._chosen_prompts(batch, key, draw)
        return jnp.where(hidden, jnp.int32(self.mask_id), batch["tokens"])

    def corrupt(
        self,
        batch: Batch,
        t: jax.Array,
        key: jax.Array,
        draw: jax.typing.ArrayLike = 0,
        sample: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws x_t: (noisy tokens [rows, length] int32, absorbed [rows, length] bool).

        `absorbed` marks the tokens that get loss; a dropped prompt is masked but not marked.
        The arguments are those of `absorb`.
        """
        absorbed = self.absorb(batch, t, key, draw, sample)
        return self.noisy_tokens(batch, absorbed, key, draw), absorbed

    def _corruption_words(
        self, batch: Batch, key: jax.Array, draw: jax.typing.ArrayLike
    ) -> tuple[jax.Array, jax.Array]:
        return random_words(key, Purpose.CORRUPTION, draw, batch["example_ids"], batch["positions"])

    def _chosen_prompts(
        self, batch: Batch, key: jax.Array, draw: jax.typing.ArrayLike
    ) -> jax.Array:
        segment_ids = batch["segment_ids"]
        prompt = before_first_selected(batch["maskable"], segment_ids, batch["positions"])
        for token_id in self.protected_ids:
            prompt &= batch["tokens"] != token_id
        words, _ = random_words(key, Purpose.PROMPT, draw, batch["example_ids"], 0)
        return prompt & (uniform(words) < self.prompt_rate)
