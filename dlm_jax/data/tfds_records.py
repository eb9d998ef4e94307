"""Records of TensorFlow Datasets; TensorFlow is imported when a split is first read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlm_jax.errors import UserError


def tfds_records(dataset: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a split in the order of the files, bytes decoded as UTF-8.

    Args:
      dataset: `name/config:version`, the version pinned, for example
        `'wmt14_translate/de-en:1.0.0'`.
      split: split of the data set.

    Raises:
      UserError: the data set has not been prepared in the folder of TensorFlow Datasets.
    """
    import tensorflow_datasets as tfds

    try:
        # Not `tfds.load`, which would begin to download gigabytes.
        builder = tfds.builder(dataset)
        read = builder.as_dataset(
            split=split,
            shuffle_files=False,
            # Files one after another: their interleaving is no order to rely on.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    except (AssertionError, tfds.core.DatasetNotFoundError, ValueError) as error:
        name = dataset.partition(":")[0]
        raise UserError(
            f"Data set {dataset} has no split {split!r} in the folder of TensorFlow Datasets: "
            f"set TFDS_DATA_DIR to that folder and prepare it with `tfds build {name}`."
        ) from error
    for record in tfds.as_numpy(read):
        yield {key: _text(value) for key, value in record.items()}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, dict):
        return {key: _text(item) for key, item in value.items()}
    if getattr(value, "dtype", None) is not None and value.dtype.hasobject:
        return [_text(item) for item in value.tolist()]
    return value
