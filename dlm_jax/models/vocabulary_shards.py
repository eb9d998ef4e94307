"""How the vocabulary lies over the mesh, and the collectives between its shards.

A table of 250k rows is never gathered: each device keeps the rows of its shard, in the lookup as
well as in the loss. The tokens travel instead. Devices whose shards differ and which hold different
tokens (the 'fsdp' axis by the default rules) gather each other's tokens; devices with the same
tokens ('tensor') only add up what their shards found.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dlm_jax.parallel.rules import active_rules, mesh_axes

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class VocabularyShards:
    """The mesh axes of tokens and vocabulary, those of size 1 left out.

    Attributes:
        tokens: axes that split the batch, and with it any list of tokens.
        vocabulary: axes that split the vocabulary, those in `tokens` last.
        num_token_shards: product of the sizes of `tokens`.
        num_shards: product of the sizes of `vocabulary`.
        group: devices that hold different tokens and different shards: the product of the sizes of
            the axes in both.
    """

    tokens: Axes
    vocabulary: Axes
    num_token_shards: int
    num_shards: int
    group: int

    @property
    def gathered(self) -> Axes:
        """Axes over which tokens have to be gathered, because their vocabulary shards differ."""
        return tuple(axis for axis in self.vocabulary if axis in self.tokens)

    @property
    def repeated(self) -> Axes:
        """Axes over which vocabulary shards differ and tokens are the same."""
        return tuple(axis for axis in self.vocabulary if axis not in self.tokens)

    @property
    def replicas(self) -> Axes:
        """Axes over which tokens differ and vocabulary shards are the same."""
        return tuple(axis for axis in self.tokens if axis not in self.vocabulary)

    @property
    def token_spec(self) -> PartitionSpec:
        """Of an array whose first dimension is a list of tokens."""
        return PartitionSpec(self.tokens or None)

    @property
    def vocabulary_spec(self) -> PartitionSpec:
        """Of an array whose first dimension is the padded vocabulary."""
        return PartitionSpec(self.vocabulary or None)

    def padding(self, vocab_size: int) -> int:
        """Rows to add to a vocabulary, so that all shards have the same number."""
        return -vocab_size % self.num_shards

    # What follows is called inside of `jax.shard_map`.

    def first_row(self, rows: int) -> jax.Array | int:
        """Number of the first of the `rows` rows of this device's shard."""
        return jax.lax.axis_index(self.vocabulary) * rows if self.vocabulary else 0

    def gather(self, x: jax.Array) -> jax.Array:
        """The tokens [n, ...] of the whole group, [group * n, ...]."""
        return jax.lax.all_gather(x, self.gathered, tiled=True) if self.gathered else x

    def own(self, x: jax.Array) -> jax.Array:
        """The inverse of `gather`: this device's [n, ...] of the group's [group * n, ...]."""
        if not self.gathered:
            return x
        size = x.shape[0] // self.group
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(self.gathered) * size, size)

    def add_and_scatter(self, x: jax.Array) -> jax.Array:
        """Adds [group * n, ...] over all shards; this device gets its own [n, ...]."""
        if self.gathered:
            x = jax.lax.psum_scatter(x, self.gathered, tiled=True)
        return jax.lax.psum(x, self.repeated) if self.repeated else x

    def add(self, x: jax.Array) -> jax.Array:
        """The sum over all vocabulary shards."""
        return jax.lax.psum(x, self.vocabulary) if self.vocabulary else x

    def maximum(self, x: jax.Array) -> jax.Array:
        """The maximum over all vocabulary shards."""
        return jax.lax.pmax(x, self.vocabulary) if self.vocabulary else x

    def add_replicas(self, x: jax.Array) -> jax.Array:
        """The sum over the devices that hold the same shard."""
        return jax.lax.psum(x, self.replicas) if self.replicas else x


def vocabulary_shards() -> VocabularyShards | None:
    """The layout under the mesh of `jax.set_mesh` and the active rules.

    Returns:
        None without a mesh, on a single device, or inside of `jax.shard_map`, where arrays are
        a device's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return None
    rules = active_rules()

    def larger_than_one(axes: Axes) -> Axes:
        return tuple(axis for axis in axes if mesh.shape[axis] > 1)

    tokens = larger_than_one(mesh_axes("batch", mesh.shape, rules.activations))
    vocabulary = larger_than_one(mesh_axes("vocab", mesh.shape, rules.parameters))
    vocabulary = tuple(sorted(vocabulary, key=lambda axis: axis in tokens))

    def ways(axes: Axes) -> int:
        return math.prod(mesh.shape[axis] for axis in axes)

    shared = tuple(axis for axis in vocabulary if axis in tokens)
    return VocabularyShards(tokens, vocabulary, ways(tokens), ways(vocabulary), ways(shared))


def padded_rows(x: jax.Array, rows: int) -> jax.Array:
    """x [n, ...] with `rows` zero rows added at the end."""
    return jnp.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)) if rows else x


def padded_table(table: jax.Array, shards: VocabularyShards) -> jax.Array:
    """table [vocab, embed] with as many rows that all shards have the same number.

    A vocabulary that its shards do not divide is kept split by columns between steps, if at all.
    Devices exchange rows for columns here, so that none of them gathers the table on the way.
    """
    more = shards.padding(table.shape[0])
    if not more:
        return table
    table = padded_rows(table, more)
    if not shards.gathered or table.shape[1] % shards.group:
        return table
    return jax.shard_map(
        lambda x: jax.lax.all_to_all(x, shards.gathered, split_axis=0, concat_axis=1, tiled=True),
        in_specs=PartitionSpec(shards.repeated or None, shards.gathered),
        out_specs=PartitionSpec(shards.vocabulary),
        check_vma=False,
    )(table)
