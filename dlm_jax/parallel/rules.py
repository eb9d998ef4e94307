"""Logical axis names, the mesh axes they stand for, and the shardings that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlm_jax.errors import UserError, nearest

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]
LogicalAxes = Sequence[str | None]

PARAMETER_RULES: Rules = MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "length": None,
        "embed": "fsdp",
        "mlp": "tensor",
        "heads": "tensor",
        "kv": None,
        "vocab": "tensor",
        "layers": None,
    }
)
ACTIVATION_RULES: Rules = MappingProxyType({**PARAMETER_RULES, "embed": None})


def partition_spec(
    logical_axes: LogicalAxes,
    mesh_shape: Mapping[str, int],
    rules: Rules,
    shape: Sequence[int] | None = None,
) -> PartitionSpec:
    """Translates the logical axes of one array into the mesh axes that it is split over.

    Args:
        logical_axes: a name for each dimension, or None for a dimension that is never split.
        mesh_shape: size of each mesh axis.
        rules: mesh axis, tuple of mesh axes or None for each logical name.
        shape: when given, a dimension that its mesh axes do not divide stays whole.

    Raises:
        UserError: when a name is not in `rules`, or a rule names an axis that the mesh lacks.
        ValueError: when `shape` has another number of dimensions than `logical_axes`.
    """
    if shape is not None and len(shape) != len(logical_axes):
        raise ValueError(f"{tuple(logical_axes)} names the axes of an array of shape {shape}.")
    entries: list[MeshAxes] = []
    for dimension, name in enumerate(logical_axes):
        axes = _mesh_axes(name, mesh_shape, rules)
        ways = 1
        for axis in axes:
            ways *= mesh_shape[axis]
        divides = shape is None or shape[dimension] % ways == 0
        entries.append((axes if len(axes) > 1 else axes[0]) if axes and divides else None)
    return PartitionSpec(*entries)


def _mesh_axes(name: str | None, mesh_shape: Mapping[str, int], rules: Rules) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in rules:
        raise UserError(
            f"Logical axis {name!r} is none of {', '.join(rules)}{nearest(name, rules)}."
        )
    target = rules[name]
    axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    for axis in axes:
        if axis not in mesh_shape:
            raise UserError(
                f"The rule {name!r} -> {target!r} names a mesh axis {axis!r} that is none of "
                f"{', '.join(mesh_shape)}{nearest(axis, mesh_shape)}."
            )
    return axes


def constrain(
    x: jax.Array, logical_axes: LogicalAxes, rules: Rules = ACTIVATION_RULES
) -> jax.Array:
    """Constrains the sharding of an activation to what its logical axes stand for.

    The mesh is the one of `jax.set_mesh`; without one, or on a single device, only the names are
    checked.

    Args:
        x: array with as many dimensions as `logical_axes`.
        logical_axes: a name of `rules`, or None, for each dimension.
        rules: mesh axes of each logical name.

    Raises:
        UserError: when a name is unknown.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        for name in logical_axes:
            if name is not None and name not in rules:
                raise UserError(
                    f"Logical axis {name!r} is none of {', '.join(rules)}{nearest(name, rules)}."
                )
        return x
    spec = partition_spec(logical_axes, mesh.shape, rules, x.shape)
    return jax.lax.with_sharding_constraint(x, spec)


def parameter_shardings(
    axes_tree: Any, mesh: Mesh, rules: Rules = PARAMETER_RULES, shapes: Any = None
) -> Any:
    """Shardings of a tree of parameters.

    Args:
        axes_tree: tree whose leaves are tuples of logical names, one for each dimension.
        mesh: mesh with the axes that `rules` names.
        rules: mesh axes of each logical name.
        shapes: the same tree with arrays or `jax.ShapeDtypeStruct` leaves; when given, a dimension
            that its mesh axes do not divide (a vocabulary of 250002 over 4) stays whole.

    Returns:
        The same tree with `NamedSharding` leaves.

    Raises:
        UserError: when a name is unknown.
    """

    def sharding(logical_axes: tuple[str | None, ...], leaf: Any = None) -> NamedSharding:
        shape = None if leaf is None else leaf.shape
        return NamedSharding(mesh, partition_spec(logical_axes, mesh.shape, rules, shape))

    trees = (axes_tree,) if shapes is None else (axes_tree, shapes)
    return jax.tree.map(sharding, *trees, is_leaf=lambda node: isinstance(node, tuple))
