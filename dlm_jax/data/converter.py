"""seqio's feature converter for diffusion: task features to the batch contract, without noise.

Importing this module imports seqio and TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError


class DiffusionFeatureConverter(seqio.FeatureConverter):
    """Turns `inputs` and `targets` into `<s> inputs targets </s>` with its maskable part marked.

    Each element becomes one row: `tokens` int32, `maskable` bool, `segment_ids` int32 (1, and 0
    on padding), `positions` int32 and `example_ids` uint32 (number of the element in the data
    set), all [inputs length + targets length + 2]. A `</s>` that the task appended is not
    repeated. Rows are filled with the vocabulary's own padding id, and no id is taken for it.

    Args:
      vocabulary: whose special ids to use.
      plain_text: the task has `targets` only, all of it maskable.
      pack: must stay False. seqio's packer takes id 0 for padding, which is `<s>` in XLM-R; packed
        batches come from `dlm_jax.data.loader.Loader`, which also reads seqio's tasks.
      apply_length_check: as in seqio.

    Raises:
      UserError: `pack` is True.
    """

    TASK_FEATURES = {
        "inputs": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }
    MODEL_FEATURES = {
        "tokens": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "maskable": seqio.FeatureConverter.FeatureSpec(dtype=tf.bool),
        "segment_ids": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "positions": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "example_ids": seqio.FeatureConverter.FeatureSpec(dtype=tf.uint32),
    }
    PACKING_FEATURE_DTYPES: Mapping[str, Any] = {}

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        plain_text: bool = False,
        pack: bool = False,
        apply_length_check: bool = True,
    ):
        if pack:
            raise UserError(
                "DiffusionFeatureConverter(pack=True): seqio's packer takes id 0 for padding; "
                "pack with dlm_jax.data.loader.Loader, which reads seqio tasks by name."
            )
        self._vocabulary = vocabulary
        if plain_text:
            self.TASK_FEATURES = {"targets": type(self).TASK_FEATURES["targets"]}
        super().__init__(pack=False, apply_length_check=apply_length_check)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Returns the row length: all task features, `<s>` and `</s>`."""
        length = sum(task_feature_lengths[key] for key in self.TASK_FEATURES) + 2
        return dict.fromkeys(self.MODEL_FEATURES, length)

    def _convert_features(self, ds: Any, task_feature_lengths: Mapping[str, int]) -> Any:
        length = self.get_model_feature_lengths(task_feature_lengths)["tokens"]

        def convert(number: Any, features: Mapping[str, Any]) -> dict[str, Any]:
            nothing = tf.zeros([0], tf.int32)
            inputs = self._without_end(features.get("inputs", nothing))
            targets = self._without_end(features["targets"])
            bos, eos = [self._vocabulary.bos_id], [self._vocabulary.eos_id]
            tokens = tf.concat([bos, inputs, targets, eos], axis=0)
            size = tf.size(tokens)
            places = tf.range(length)
            used = places < size
            padding = tf.fill([length - size], self._vocabulary.pad_id)
            return {
                "tokens": tf.ensure_shape(tf.concat([tokens, padding], axis=0), [length]),
                "maskable": used & (places > tf.size(inputs)),
                "segment_ids": tf.cast(used, tf.int32),
                "positions": tf.where(used, places, 0),
                "example_ids": tf.where(used, tf.cast(number, tf.uint32), tf.zeros([], tf.uint32)),
            }

        return ds.enumerate().map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def _without_end(self, ids: Any) -> Any:
        ends = tf.size(ids) - tf.cast(tf.reduce_any(ids[-1:] == self._vocabulary.eos_id), tf.int32)
        return ids[:ends]
