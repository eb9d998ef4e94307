"""What gin files ask for, as far as a compiler needs to know: no data, weights or tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dlm_jax.errors import UserError, nearest
from dlm_jax.models.config import SIZES, EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig
from dlm_jax.parallel.rules import ShardingRules

if TYPE_CHECKING:
    import optax

    from dlm_jax.training.objectives import Objective
    from dlm_jax.training.spikes import SkipSpikes

# What `train` is given in a plan, so that gin files need not set it: none of it changes a program.
UNNEEDED = ("run_dir", "task", "vocabulary", "evaluators", "data_cache_dir")

_KNOWN_SOURCES = {
    "xlm-roberta-base": "base",
    "xlm-roberta-large": "large",
    "xlm-roberta-xl": "xl",
    "xlm-roberta-xxl": "xxl",
}


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """One optimizer step.

    Attributes:
        config: shape of the encoder.
        objective: what is minimised.
        optimizer: optax's transformation.
        batch_size: clean rows a step, over all devices and micro-batches.
        length: tokens a row.
        accumulation: micro-batches a step.
        head_chunk: positions projected on the vocabulary at a time.
        skip_spikes: which steps change nothing though they are finite; None = none.
        mesh: how devices are arranged.
        sharding: which mesh axes split which axes of parameters and activations.
    """

    config: EncoderConfig
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    length: int
    accumulation: int = 1
    head_chunk: int | None = None
    skip_spikes: SkipSpikes | None = None
    mesh: MeshConfig = MeshConfig()
    sharding: ShardingRules = ShardingRules()

    @property
    def rows(self) -> int:
        """Rows a step that go through the denoiser: every draw of noise is one."""
        return self.batch_size * getattr(self.objective, "rows_per_example", 1)

    @property
    def head_fraction(self) -> float:
        """Expected share of the positions that the head projects."""
        rate = getattr(self.objective, "mask_rate", None)
        if rate is not None:
            return rate
        if self.objective.attention_pattern == "causal":
            return 1.0  # every token of a response is predicted
        if getattr(self.objective, "pairing", None) == "fixed_ratio":
            return getattr(self.objective, "fixed_ratio", 0.5)
        return 0.5  # times are uniform, and so is the share that a linear schedule absorbs


@dataclasses.dataclass(frozen=True)
class SamplingStep:
    """One denoiser evaluation of the reverse process: the encoder, and the head on a piece.

    Attributes:
        config: shape of the encoder.
        batch_size: canvases.
        length: tokens of a canvas.
        mesh: how devices are arranged.
        sharding: which mesh axes split which axes of parameters and activations.
    """

    config: EncoderConfig
    batch_size: int
    length: int
    mesh: MeshConfig = MeshConfig()
    sharding: ShardingRules = ShardingRules()


Request = TrainingStep | SamplingStep


def capturing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for an entry function: same signature, and it returns its arguments by name."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def capture(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    return capture


def training_step(values: Mapping[str, Any]) -> TrainingStep:
    """Builds the request from the arguments that `dlm_jax.training.train.train` would get.

    Args:
        values: arguments by name.

    Raises:
        UserError: the shape of the model is not known, or a value is out of range.
    """
    from dlm_jax.training.objectives import check_attention_pattern
    from dlm_jax.training.train import config_overrides

    shape = values["model"]
    if shape is None:
        if values["initial_checkpoint"] is None:
            raise UserError("no model to plan for: give --model, such as --model=xxl")
        shape = shape_of(values["initial_checkpoint"])
    names = ("dtype", "dropout_rate", "remat_policy", "attention", "attention_pattern")
    overrides = config_overrides(**{name: values[name] for name in names})
    config = dataclasses.replace(shape, **overrides)
    if values["length"] > config.max_length:
        raise UserError(
            f"train.length is {values['length']}, more than the {config.max_length} positions of "
            "the model"
        )
    for name in ("batch_size", "gradient_accumulation_steps", "total_steps"):
        if values[name] < 1:
            raise UserError(f"train.{name} must be at least 1, not {values[name]}")
    objective = values["objective"].build(_special_ids(config))
    check_attention_pattern(objective, config)
    return TrainingStep(
        config=config,
        objective=objective,
        optimizer=values["optimizer"].build(values["total_steps"]),
        batch_size=values["batch_size"],
        length=values["length"],
        accumulation=values["gradient_accumulation_steps"],
        head_chunk=values["head_chunk"],
        skip_spikes=values["skip_spikes"],
        mesh=values["mesh"],
        sharding=values["sharding"],
    )


def sampling_step(values: Mapping[str, Any], model: EncoderConfig | None) -> SamplingStep:
    """Builds the request from the arguments that `dlm_jax.evaluation.evaluate.evaluate` would get.

    Raises:
        UserError: the shape of the model is not known.
    """
    if model is None:
        raise UserError(
            "a sampling plan needs the shape of the model: give --model=xxl or a folder"
        )
    sizes = [getattr(item, "batch_size", 1) for item in values["evaluators"] or ()]
    return SamplingStep(model, max(sizes, default=1), model.max_length)


def shape_of(source: str) -> EncoderConfig:
    """The shape of a model: a size, a run folder, a Hugging Face folder, or a known hub name.

    Raises:
        UserError: nothing of that name is known here; weights are never fetched to find out.
    """
    if source in SIZES:
        return SIZES[source]
    name = source.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    if source.startswith("hf:") and name in _KNOWN_SOURCES:
        return SIZES[_KNOWN_SOURCES[name]]
    from dlm_jax.checkpoints.hf_config import read_config
    from dlm_jax.checkpoints.run_folder import RunFolder

    path = Path(source)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        path = path.parent.parent
    if RunFolder(path).is_run:
        return RunFolder(path).description().config
    if (path / "config.json").is_file():
        return read_config(path / "config.json")
    known = [*SIZES, *(f"hf:FacebookAI/{name}" for name in _KNOWN_SOURCES)]
    raise UserError(
        f"the shape of {source!r} is not known here{nearest(source, known)}: give --model, which "
        f"can be {', '.join(SIZES)}, a gin file of models/, a run or a Hugging Face folder"
    )


def _special_ids(config: EncoderConfig) -> Any:
    """What objectives read of a vocabulary, numbered as XLM-R does; ids change no program."""
    last = config.vocab_size - 1
    return SimpleNamespace(
        size=config.vocab_size, bos_id=0, mask_id=last, special_ids=frozenset((0, 1, 2, 3, last))
    )
