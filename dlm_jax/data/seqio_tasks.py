"""seqio on our terms: its vocabularies backed by ours, its tasks and mixtures in our loaders.

Importing this module imports seqio and TensorFlow; nothing does so before a seqio task is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from dlm_jax.data.tasks import Metric, Mixture, Task, TextExample, check_split
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError


class SeqioVocabulary(seqio.Vocabulary):
    """A vocabulary of ours behind seqio's interface.

    seqio reserves id 0 for padding in its own vocabularies; here 0 is what the vocabulary says.

    Args:
      vocabulary: where the ids come from.
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(extra_ids=0)
        self.vocabulary = vocabulary

    @property
    def bos_id(self) -> int:
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eos_id

    @property
    def pad_id(self) -> int:
        return self.vocabulary.pad_id

    @property
    def unk_id(self) -> int:
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self.vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: Any) -> Any:
        def encode(text: Any) -> Any:
            # A graph hands over bytes, eager execution an array around them.
            encoded = np.asarray(text, object).item()
            return np.array(self.vocabulary.encode(encoded.decode("utf-8")), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: Any) -> Any:
        def decode(values: Any) -> Any:
            rows = values.reshape(-1, values.shape[-1])
            texts = [self.vocabulary.decode(row).encode("utf-8") for row in rows]
            return np.array(texts, object).reshape(values.shape[:-1])

        text = tf.numpy_function(decode, [ids], tf.string)
        text.set_shape(ids.shape[:-1])
        return text

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SeqioVocabulary)
            and self.vocabulary.fingerprint == other.vocabulary.fingerprint
        )

    def __hash__(self) -> int:
        return hash(self.vocabulary.fingerprint)


def as_seqio(vocabulary: Vocabulary) -> SeqioVocabulary:
    """Returns `vocabulary` as a seqio vocabulary, for the output features of a `seqio.Task`."""
    return SeqioVocabulary(vocabulary)


@dataclasses.dataclass(frozen=True)
class SeqioTask:
    """A `seqio.Task` whose features are `targets` and, unless it is plain text, `inputs`.

    Attributes:
      task: the task; its features must be encoded by `as_seqio(vocabulary)`.
    """

    task: Any

    def __post_init__(self) -> None:
        if "targets" not in self.task.output_features:
            raise UserError(f"seqio task {self.name} has no output feature 'targets'.")

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def description(self) -> str:
        return "seqio task"

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self.task.splits)

    @property
    def evaluation_only(self) -> bool:
        return False

    @property
    def plain_text(self) -> bool:
        return "inputs" not in self.task.output_features

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's predict metrics, behind its postprocessor where it has one."""
        functions = tuple(self.task.predict_metric_fns)
        if getattr(self.task, "_postprocess_fn", None) is None:
            return functions
        return tuple(self._postprocessed(function) for function in functions)

    def examples(self, split: str) -> Iterator[TextExample]:
        """Yields the examples as text: the features before tokenisation where seqio kept them."""
        for example in self._dataset(split):
            yield TextExample(self._text(example, "inputs"), self._text(example, "targets"))

    def tokenized(
        self, split: str, vocabulary: Vocabulary, *, skip: int = 0
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields (input ids, target ids) without the `</s>` that the task may have appended.

        Raises:
          UserError: a feature was encoded by another vocabulary.
        """
        for key in ("inputs", "targets"):
            feature = self.task.output_features.get(key)
            if feature is not None and feature.vocabulary != SeqioVocabulary(vocabulary):
                raise UserError(
                    f"seqio task {self.name} encodes {key!r} with another vocabulary than the "
                    "model's: give the feature as_seqio(vocabulary)."
                )
        for example in self._dataset(split, skip):
            inputs = [] if self.plain_text else example["inputs"].tolist()
            targets = example["targets"].tolist()
            yield (
                _without_end(inputs, vocabulary.eos_id),
                _without_end(targets, vocabulary.eos_id),
            )

    def _dataset(self, split: str, skip: int = 0) -> Iterator[Mapping[str, Any]]:
        check_split(self, split)
        dataset = self.task.get_dataset(None, split, use_cached=False, shuffle=False)
        return dataset.skip(skip).as_numpy_iterator()

    def _text(self, example: Mapping[str, Any], key: str) -> str:
        pretokenized = example.get(f"{key}_pretokenized")
        if pretokenized is not None:
            return pretokenized.decode("utf-8")
        feature = self.task.output_features.get(key)
        return feature.vocabulary.decode(example[key].tolist()) if feature is not None else ""

    def _postprocessed(self, function: Callable[..., Mapping[str, float]]) -> Metric:
        def metric(targets: list[str], predictions: list[str]) -> Mapping[str, float]:
            process = self.task.postprocess_fn
            return function(
                [process(text, example=None, is_target=True) for text in targets],
                [process(text, example=None, is_target=False) for text in predictions],
            )

        return metric


def from_registry(name: str) -> Task | Mixture:
    """Returns a task or mixture of seqio's registries as one of ours.

    Raises:
      UserError: the task has no `targets`.
    """
    if name in seqio.TaskRegistry.names():
        return SeqioTask(seqio.TaskRegistry.get(name))
    mixture = seqio.MixtureRegistry.get(name)
    return Mixture(name, {task.name: float(mixture.get_rate(task)) for task in mixture.tasks})


def _without_end(ids: list[int], eos_id: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == eos_id else ids
