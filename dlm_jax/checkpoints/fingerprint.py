"""A name for the values of a model, the same wherever and however they lie."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from dlm_jax.models.parameter_trees import flat
from dlm_jax.parallel import multihost


def fingerprint(parameters: Any) -> str:
    """Sixteen hexadecimal digits: equal for equal bits, whatever mesh the arrays are split over.

    Args:
        parameters: tree of float32 arrays; where they are split over several processes, all of
            them must call it.
    """
    digest = hashlib.sha256()
    checksums: Any = _checksums
    leaves = jax.tree.leaves(parameters)
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves):
        # Of several processes none runs it before all have compiled it: within a program they wait
        # for each other for no more than seconds.
        checksums = _checksums.lower(parameters).compile()
        multihost.exchange("compiled", "")
    for (name, leaf), total in zip(flat(parameters), jax.tree.leaves(checksums(parameters))):
        digest.update(f"{name}{list(leaf.shape)}{int(total)};".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _checksums(parameters: Any) -> Any:
    return jax.tree.map(_checksum, parameters)


def _checksum(leaf: jax.Array) -> jax.Array:
    """uint32 []: a sum over the elements, so that no order and no device counts; each is mixed with
    its place, so that none can be exchanged for another."""
    words = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for dimension, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size)
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dimension)
    return _mix(words + _mix(place + jnp.uint32(1))).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    # The finaliser of MurmurHash3, a bijection of 32-bit words.
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
