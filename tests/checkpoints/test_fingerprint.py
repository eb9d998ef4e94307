"""A fingerprint changes with every bit, and with nothing else."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dlm_jax.checkpoints.fingerprint import fingerprint


def tree(**changed):
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {"layer": {"kernel": kernel, "bias": np.zeros(4, np.float32)}, **changed}


def test_equal_values_have_equal_fingerprints() -> None:
    own = fingerprint(tree())
    assert len(own) == 16 and int(own, 16) >= 0
    assert own == fingerprint({"layer": {k: jnp.asarray(v) for k, v in tree()["layer"].items()}})


def test_any_other_bit_place_shape_or_name_has_another() -> None:
    kernel = tree()["layer"]["kernel"]
    variants = [tree()]
    for place in np.ndindex(kernel.shape):
        moved = kernel.copy()
        moved[place] = np.nextafter(moved[place], np.float32(99))
        variants.append({"layer": {**tree()["layer"], "kernel": moved}})
    for other in (kernel[::-1], kernel[:, ::-1], kernel.reshape(4, 3), kernel.reshape(2, 6)):
        variants.append({"layer": {**tree()["layer"], "kernel": np.ascontiguousarray(other)}})
    variants.append({"layer": {**tree()["layer"], "bias": np.full(4, -0.0, np.float32)}})
    variants.append({"layer": {"kernal": kernel, "bias": np.zeros(4, np.float32)}})
    variants.append(tree(more=np.zeros((), np.float32)))
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
