"""The folder of a run: everything that is needed to use its model, without the gin files that made
it.

model.json  vocabulary/  config.gin  model_info.txt  metrics.jsonl  checkpoints/<step>/
eval/<task>/<step>.jsonl  length_predictor/
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dlm_jax.errors import UserError, nearest
from dlm_jax.models.config import EncoderConfig

if TYPE_CHECKING:
    from dlm_jax.data.vocabularies import Vocabulary

FORMAT = 1
_DESCRIPTION = "model.json"


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a run's model is.

    Attributes:
        config: the encoder's shape.
        task: the task or mixture that it was trained on last, if any.
        length: tokens per training row.
        origin: where its first weights came from.
    """

    config: EncoderConfig
    task: str | None = None
    length: int | None = None
    origin: str = "random weights"

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; `from_json` reads them back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> ModelDescription:
        """Reads what `to_json` wrote.

        Raises:
            UserError: naming `where` and the key that is missing, unknown, or newer than this
                program.
        """
        if not isinstance(values, dict) or "format" not in values or "config" not in values:
            raise UserError(f"{where} does not describe a dlm_jax model")
        for key, kind in {**get_type_hints(cls), "format": int, "config": dict}.items():
            if key in values and not isinstance(values[key], kind):
                raise UserError(f"{where} has {values[key]!r} as its {key!r}, which it cannot be")
        if values["format"] > FORMAT:
            raise UserError(
                f"{where} has format {values['format']}, and this version of dlm_jax reads up to "
                f"{FORMAT}: upgrade dlm_jax"
            )
        return cls(
            config=_build(EncoderConfig, values["config"], where),
            **_known(
                cls, {k: v for k, v in values.items() if k not in ("format", "config")}, where
            ),
        )


def _known(cls: Any, values: dict[str, Any], where: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            raise UserError(f"{where} has an unknown key {name!r}{nearest(name, names)}")
    return values


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where} has no table of {cls.__name__} values")
    try:
        return cls(**_known(cls, values, where))
    except TypeError as error:
        raise UserError(f"{where} does not describe a {cls.__name__}: {error}") from error


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the folder.
        model: folder of the run that the model is from, where results are kept elsewhere.
    """

    def __init__(self, path: str | Path, model: str | Path | None = None) -> None:
        self.path = Path(path)
        self._model = self.path if model is None else Path(model)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The metrics, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def vocabulary(self) -> Path:
        """Folder of the vocabulary's own files."""
        return self.path / "vocabulary"

    @property
    def length_predictor(self) -> RunFolder:
        """Folder of the length predictor that was trained for the run's model."""
        return RunFolder(self._model / "length_predictor")

    def evaluations(self, task: str, step: int) -> Path:
        """File of one evaluation's predictions."""
        return self.path / "eval" / task / f"{step}.jsonl"

    def make(self) -> None:
        """Makes the folder, and finds out whether it can be written to.

        Raises:
            UserError: it cannot.
        """
        probe = self.path / f".probe.{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            # A file of that name is no folder, however the system words it.
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise UserError(f"run folder {self.path} cannot be written: {reason}") from error

    def write_text(self, name: str, text: str) -> None:
        """Replaces a small file atomically; a killed process leaves the old one."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.path / name)

    def describe(self, description: ModelDescription, vocabulary: Vocabulary) -> None:
        """Writes `model.json` and the vocabulary's files."""
        self.path.mkdir(parents=True, exist_ok=True)
        vocabulary.save(self.vocabulary)
        self.write_text(_DESCRIPTION, json.dumps(description.to_json(), indent=1) + "\n")

    @property
    def is_run(self) -> bool:
        """Whether a run has been described here."""
        return (self.path / _DESCRIPTION).is_file()

    def description(self) -> ModelDescription:
        """Reads `model.json`.

        Raises:
            UserError: the folder is no run, or the file is damaged, foreign or newer.
        """
        file = self.path / _DESCRIPTION
        if not self.path.is_dir():
            raise UserError(f"run folder {self.path} does not exist")
        if not file.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no {_DESCRIPTION}")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from error
        return ModelDescription.from_json(values, str(file))
