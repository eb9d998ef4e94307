"""Records of TensorFlow Datasets: text as text, and the sentence for a set that is not there."""

from __future__ import annotations

import pytest

from dlm_jax.data.tfds_records import tfds_records
from dlm_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


def test_a_set_that_is_not_prepared_says_how() -> None:
    name = "wmt14_translate/de-en"
    with pytest.raises(UserError, match=rf"set TFDS_DATA_DIR .* `tfds build {name}`") as caught:
        list(tfds_records(f"{name}:1.0.0", "test"))
    assert "\n" not in str(caught.value)
    for unknown in ("no_such_set:1.0.0", "gigaword:0.0.1"):
        with pytest.raises(UserError, match=f"{unknown} has no split 'test'"):
            list(tfds_records(unknown, "test"))


def test_bytes_become_text_at_every_depth() -> None:
    with tfds.testing.mock_data(num_examples=2):
        records = list(tfds_records("tydi_qa/goldp:3.0.0", "train"))
    assert len(records) == 2
    for record in records:
        assert isinstance(record["question"], str) and isinstance(record["id"], str)
        assert all(isinstance(text, str) for text in record["answers"]["text"])
