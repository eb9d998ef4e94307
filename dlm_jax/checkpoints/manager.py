"""Saving and restoring training states with orbax; the only module that names orbax."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dlm_jax.checkpoints import manifest
from dlm_jax.checkpoints.atomic_folder import atomic_folder
from dlm_jax.errors import UserError, nearest
from dlm_jax.parallel import multihost

FORMAT = 1
"""Raised by one whenever an older program could misread what a newer one saves."""

# How often the steps of a folder are listed before it is believed that they cannot be.
_LISTINGS = 20
Listed = TypeVar("Listed")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep: the latest, the best and every N-th, together.

    Attributes:
        save_every: steps between two checkpoints; the last step is always saved.
        keep_latest: how many of the newest to keep (at least one, or resuming would lose steps).
        keep_best: how many of the best by `best_metric` to keep, among those that are evaluated
            when they are saved; 0 turns it off.
        best_metric: a figure of the evaluations, such as 'nelbo', which is its mean over the tasks
            of validation, or the figure of one task, such as 'multi30k_en_de_v1/nelbo'.
        best_mode: whether a smaller ('min') or a larger ('max') value is better.
        keep_every: keeps each checkpoint whose step it divides; 0 turns it off.
        asynchronous: whether arrays are written while training goes on.
    """

    save_every: int = 1000
    keep_latest: int = 2
    keep_best: int = 0
    best_metric: str = "nelbo"
    best_mode: str = "min"
    keep_every: int = 0
    asynchronous: bool = True

    def __post_init__(self) -> None:
        for field in ("save_every", "keep_latest"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"CheckpointConfig.{field} must be at least 1, not {getattr(self, field)}"
                )
        for field in ("keep_best", "keep_every"):
            if getattr(self, field) < 0:
                raise UserError(
                    f"CheckpointConfig.{field} must not be negative, not {getattr(self, field)}"
                )
        if self.best_mode not in ("min", "max"):
            raise UserError(
                f"CheckpointConfig.best_mode must be 'min' or 'max', not {self.best_mode!r}"
            )

    def check_ranking(self, evaluate_every: int) -> None:
        """Raises a UserError where most evaluations would be of steps that are not saved.

        Args:
            evaluate_every: steps between two evaluations; 0 = only after the last step.
        """
        often, seldom = sorted((evaluate_every, self.save_every))
        if self.keep_best and often and seldom % often:
            raise UserError(
                f"CheckpointConfig.keep_best={self.keep_best} needs evaluations of what is saved: "
                f"CheckpointConfig.save_every={self.save_every} or evaluate_every={evaluate_every} "
                "must be a multiple of the other"
            )


def _preservation(config: CheckpointConfig) -> policies.PreservationPolicy:
    # BestN alone deletes the newest checkpoint when it is not among the best, and resuming goes
    # backwards.
    kept: list[policies.PreservationPolicy] = [policies.LatestN(n=config.keep_latest)]
    if config.keep_best:
        kept.append(
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[config.best_metric],
                reverse=config.best_mode == "min",
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    if config.keep_every:
        kept.append(policies.EveryNSteps(interval_steps=config.keep_every))
    return policies.AnyPreservationPolicy(kept)


def _listed(read: Callable[[], Listed]) -> Listed:
    """Calls `read`, again if a step that it met was removed meanwhile, as a training run does."""
    for _ in range(_LISTINGS - 1):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


class CheckpointManager:
    """The checkpoints of one run: `<folder>/<step>/{parameters,training,cursor}`.

    `parameters` stand apart from the rest of the training state, so that evaluation reads a third
    of the bytes.
    """

    def __init__(self, folder: str | Path, config: CheckpointConfig | None = None) -> None:
        """Opens (and with a `config`, creates) the folder; without one it is only read."""
        self.folder = Path(folder).absolute()
        self._config = config
        if config is None and not self.folder.is_dir():
            raise UserError(f"no checkpoints in {self.folder}: the folder does not exist")
        # Orbax logs each phase at warning level on a single host; a run has its own progress line.
        logging.getLogger("absl").setLevel(logging.ERROR)
        ranked = config.best_metric if config and config.keep_best else None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_preservation(config) if config else None,
            # Without it orbax forgets the metrics that the preservation policy ranks by.
            best_fn=(lambda metrics: metrics[ranked]) if ranked else None,
            enable_async_checkpointing=bool(config and config.asynchronous),
            read_only=config is None,
            cleanup_tmp_directories=config is not None,
        )
        self._manager = _listed(
            lambda: ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={
                    "parameters": ocp.StandardCheckpointHandler(),
                    "training": ocp.StandardCheckpointHandler(),
                    "cursor": ocp.JsonCheckpointHandler(),
                },
            )
        )

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(_listed(lambda: self._manager.all_steps(read=True)))

    def latest_step(self) -> int | None:
        """The newest finished step, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(
        self,
        step: int,
        parameters: Any,
        training: Any,
        cursor: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves one step; returns once the arrays are copied, not once they are written.

        Args:
            step: the number of finished optimizer steps.
            parameters: the model's parameter tree.
            training: the optimizer state and all else that the next step depends on.
            cursor: JSON that places the data stream after the last batch used.
            metrics: evaluation results of this step; they decide which are the best.
        """
        # Orbax would wait for the save before too. Once it is over, so is the removal of old steps,
        # and every step is sealed before it can be removed.
        self.wait()
        if metrics is not None and self.unranked(metrics):
            metrics = None  # orbax would rank by it
        self._manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(parameters),
                training=ocp.args.StandardSave(training),
                cursor=ocp.args.JsonSave({"format": FORMAT, "cursor": cursor}),
            ),
            metrics=metrics,
            force=True,
        )

    def rank(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the evaluation of a step that was saved before it could be evaluated.

        Args:
            step: of a finished checkpoint.
            metrics: as of `save`.
        """
        config = self._config
        if config is None or not config.keep_best or self.unranked(metrics):
            return
        target = self.folder / str(step) / "metrics"
        if multihost.is_main() and not target.exists():
            with atomic_folder(target) as draft:  # as orbax writes it
                (draft / "metrics").write_text(json.dumps(metrics), encoding="utf-8")
        multihost.together("rank", lambda: None)
        self._manager.reload()

    def unranked(self, metrics: Mapping[str, float]) -> str:
        """Why a checkpoint with these metrics cannot be among the best; '' when it can."""
        config = self._config
        if config is None or not config.keep_best:
            return ""
        wanted = config.best_metric
        if wanted in metrics:
            # Compared with what is not a number, any checkpoint would count as better or worse.
            if math.isfinite(metrics[wanted]):
                return ""
            return (
                f"{wanted}, CheckpointConfig.best_metric, is {metrics[wanted]}: this checkpoint is "
                "not kept as a best one"
            )
        longer = [name for name in metrics if name.endswith(f"/{wanted}")]
        meant = f" (did you mean {longer[0]}?)" if longer else nearest(wanted, metrics)
        return (
            f"CheckpointConfig.best_metric is {wanted!r}, which the evaluation did not "
            f"give{meant}: this checkpoint is not kept as a best one"
        )

    def restore(self, step: int, parameters: Any, training: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Reads a step back onto the shapes and shardings of the abstract trees given.

        Returns:
            The parameters, the training state and the data cursor.

        Raises:
            UserError: the step is absent, damaged, foreign, newer, or of another model.
        """
        cursor = self._check(step)
        _same_shapes(parameters, self._read_shapes(step, "parameters"), self.folder / str(step))
        restored = self._restore(
            step,
            ocp.args.Composite(
                parameters=ocp.args.StandardRestore(parameters),
                training=ocp.args.StandardRestore(training),
            ),
        )
        return restored["parameters"], restored["training"], cursor

    def restore_parameters(self, step: int, parameters: Any) -> Any:
        """Reads only the parameters of a step onto an abstract tree; raises as `restore`."""
        self._check(step)
        _same_shapes(parameters, self._read_shapes(step, "parameters"), self.folder / str(step))
        args = ocp.args.Composite(parameters=ocp.args.StandardRestore(parameters))
        return self._restore(step, args)["parameters"]

    def wait(self) -> None:
        """Blocks until all is on disk and sealed; raises what a background save raised."""
        self._manager.wait_until_finished()
        self._seal_finished()

    def close(self) -> None:
        """Finishes the pending saves and lets go of the folder."""
        if self._config is not None:
            self.wait()
        self._manager.close()

    def _seal_finished(self) -> None:
        if multihost.is_main():
            for step in self.steps():
                manifest.seal(self.folder / str(step))

    def _check(self, step: int) -> dict[str, Any]:
        folder = self.folder / str(step)
        steps = self.steps()
        if step not in steps:
            listed = ", ".join(map(str, steps)) or "none"
            raise UserError(f"no checkpoint of step {step} in {self.folder} (there are: {listed})")
        multihost.together("verify", lambda: self._verify(folder, steps, step))
        saved = self._restore(step, ocp.args.Composite(cursor=ocp.args.JsonRestore()))["cursor"]
        if not isinstance(saved, dict) or "format" not in saved:
            raise UserError(f"{folder} was not saved by dlm_jax: its cursor names no format")
        if saved["format"] > FORMAT:
            raise UserError(
                f"checkpoint {folder} has format {saved['format']}, and this version of dlm_jax "
                f"reads up to {FORMAT}: upgrade dlm_jax"
            )
        return saved["cursor"]

    def _verify(self, folder: Path, steps: list[int], step: int) -> None:
        # One host reads it all, for the others.
        if not multihost.is_main():
            return
        try:
            manifest.verify(folder)
        except UserError as error:
            earlier = [s for s in steps if s < step]
            advice = f"; delete it to resume from step {earlier[-1]}" if earlier else ""
            raise UserError(f"{error}{advice}") from error

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many types for unreadable files
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read: {reason[:200]}"
            ) from error

    def _read_shapes(self, step: int, item: str) -> Any:
        try:
            metadata = self._manager.item_metadata(step)[item]
        except Exception as error:
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read: {item} has no metadata"
            ) from error
        if metadata is None:
            raise UserError(f"{self.folder / str(step)} was not saved by dlm_jax: no {item} in it")
        return metadata


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _same_shapes(wanted: Any, saved: Any, folder: Path) -> None:
    """Raises a UserError that names the first parameter in which model and checkpoint differ."""
    ours = _leaves(wanted)
    theirs = _leaves(getattr(saved, "tree", saved))
    for name, leaf in ours.items():
        if name not in theirs:
            raise UserError(f"checkpoint {folder} holds another model: it has no parameter {name}")
        if tuple(theirs[name].shape) != tuple(leaf.shape):
            raise UserError(
                f"checkpoint {folder} holds another model: {name} has shape "
                f"{list(theirs[name].shape)} there and {list(leaf.shape)} here"
            )
    extra = sorted(set(theirs) - set(ours))
    if extra:
        raise UserError(f"checkpoint {folder} holds another model: this one has no {extra[0]}")
