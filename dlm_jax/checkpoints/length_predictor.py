"""The length predictor of a run, in a folder of its own beside the run's checkpoints.

<run>/length_predictor/  length_predictor.json  config.gin  metrics.jsonl  checkpoints/<step>/
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax

from dlm_jax.checkpoints.fingerprint import fingerprint
from dlm_jax.checkpoints.manager import CheckpointManager
from dlm_jax.checkpoints.run_folder import RunFolder
from dlm_jax.errors import UserError
from dlm_jax.models import length_predictor
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.length_predictor import SHAPE_FIELDS, LengthPredictor

FORMAT = 1
_RECORD = "length_predictor.json"


@dataclasses.dataclass(frozen=True)
class LengthPredictorRecord:
    """What a length predictor was trained on.

    Attributes:
        shape: fields of the model's configuration that decide its own shape.
        model_step: step of the checkpoint whose features it reads.
        model_fingerprint: of that checkpoint's parameters.
        task: the task or mixture whose lengths it knows.
    """

    shape: dict[str, int]
    model_step: int
    model_fingerprint: str
    task: str

    @classmethod
    def of(
        cls, config: EncoderConfig, step: int, parameters: Any, task: str
    ) -> LengthPredictorRecord:
        """The record of a predictor for a model of these parameters."""
        return cls(shape_of(config), step, fingerprint(parameters), task)


def shape_of(config: EncoderConfig) -> dict[str, int]:
    """What a predictor's shape depends on."""
    return {name: getattr(config, name) for name in SHAPE_FIELDS}


def write_record(folder: RunFolder, record: LengthPredictorRecord) -> None:
    """Writes `length_predictor.json` into the folder of a predictor."""
    document = {"format": FORMAT, **dataclasses.asdict(record)}
    folder.write_text(_RECORD, json.dumps(document, indent=1) + "\n")


def read_record(folder: RunFolder) -> LengthPredictorRecord | None:
    """Reads the record of a predictor; None where there is none.

    Raises:
        UserError: it is damaged, foreign or newer.
    """
    file = folder.path / _RECORD
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") > FORMAT:
            raise UserError(f"{file} is newer than this version of dlm_jax: upgrade dlm_jax")
        return LengthPredictorRecord(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error!r}") from error


def check_record(folder: RunFolder, record: LengthPredictorRecord) -> None:
    """Compares what a predictor is to be trained on with what its folder was trained on.

    Raises:
        UserError: the folder holds a checkpoint of a predictor of something else.
    """
    known = read_record(folder)
    if known is None or not any(folder.checkpoints.glob("[0-9]*")):
        return
    _check_shape(folder, known, record.shape)
    for name, here, there in (
        ("step", known.model_step, record.model_step),
        ("weights", known.model_fingerprint, record.model_fingerprint),
        ("task", known.task, record.task),
    ):
        if here != there:
            raise UserError(
                f"{folder.path} was trained on {name} {here} of its run, and not on {there}: go on "
                "with that, or remove the folder to train it anew"
            )


def _check_shape(folder: RunFolder, record: LengthPredictorRecord, shape: dict[str, int]) -> None:
    for name, value in shape.items():
        if record.shape.get(name) != value:
            raise UserError(
                f"{folder.path} predicts lengths for a model with {name}={record.shape.get(name)}, "
                f"and this one has {name}={value}: remove that folder and train it again with dlm "
                "length"
            )


def load_length_predictor(
    folder: RunFolder, config: EncoderConfig, parameters: Any
) -> LengthPredictor | None:
    """Reads the newest checkpoint of a predictor.

    Args:
        folder: of the predictor (`RunFolder.length_predictor`).
        config: of the model whose lengths it is to predict.
        parameters: of that model.

    Returns:
        The predictor, without dropout; None where none has been trained.

    Raises:
        UserError: it was trained for a model of another shape or on other weights, or is damaged.
    """
    record = read_record(folder)
    if record is None or not any(folder.checkpoints.glob("[0-9]*")):
        return None
    _check_shape(folder, record, shape_of(config))
    if fingerprint(parameters) != record.model_fingerprint:
        raise UserError(
            f"{folder.path} was trained on the features of step {record.model_step} and not on "
            "these weights: use that step, or remove that folder and train it again with dlm length"
        )
    manager = CheckpointManager(folder.checkpoints)
    try:
        newest = manager.latest_step()
        if newest is None:
            return None
        on_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_device),
            length_predictor.abstract_parameters(config),
        )
        restored = manager.restore_parameters(newest, abstract)
    finally:
        manager.close()
    return length_predictor.from_parameters(config, restored)
