"""Logical axis names, the mesh axes they stand for, and the shardings that follow."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlm_jax.errors import UserError, nearest
from dlm_jax.parallel.mesh import MESH_AXES

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]
LogicalAxes = Sequence[str | None]

# The vocabulary is split over everything but the replicas: then neither the lookup nor the loss
# ever gathers a table of 250k rows. 'tensor' stands first, because its shards see the same tokens.
PARAMETER_RULES: Rules = MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "length": None,
        "embed": "fsdp",
        "mlp": "tensor",
        "heads": "tensor",
        "kv": None,
        "vocab": ("tensor", "fsdp"),
        "layers": None,
    }
)
ACTIVATION_RULES: Rules = MappingProxyType({**PARAMETER_RULES, "embed": None, "vocab": "tensor"})


def _defaults() -> dict[str, MeshAxes]:
    return {}


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes each logical axis is split over; by default FSDP and tensor parallelism.

    Attributes:
        parameters: {logical name: mesh axis, list of mesh axes or None} that replaces entries of
            `PARAMETER_RULES`; the optimizer's state follows its parameters.
        activations: the same for `ACTIVATION_RULES`.

    Raises:
        UserError: when a logical name or a mesh axis is unknown.
    """

    parameters: dict[str, str | tuple[str, ...] | None] = dataclasses.field(
        default_factory=_defaults
    )
    activations: dict[str, str | tuple[str, ...] | None] = dataclasses.field(
        default_factory=_defaults
    )

    def __post_init__(self) -> None:
        for field, defaults in (
            ("parameters", PARAMETER_RULES),
            ("activations", ACTIVATION_RULES),
        ):
            rules = getattr(self, field)
            for name, target in rules.items():
                if name not in defaults:
                    raise UserError(
                        f"ShardingRules.{field} has a logical axis {name!r} that is none of "
                        f"{', '.join(defaults)}{nearest(name, defaults)}."
                    )
                _known_axes(f"ShardingRules.{field}: the rule", name, target, MESH_AXES)
            whole = {
                name: tuple(target) if isinstance(target, list) else target
                for name, target in {**defaults, **rules}.items()
            }
            object.__setattr__(self, field, whole)


def _known_axes(
    what: str, name: str, target: MeshAxes, known: Sequence[str] | Mapping[str, int]
) -> tuple[str, ...]:
    axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    for axis in axes:
        if axis not in known:
            raise UserError(
                f"{what} {name!r} -> {target!r} names a mesh axis {axis!r} that is none of "
                f"{', '.join(known)}{nearest(axis, known)}."
            )
    return axes


_ACTIVE: contextvars.ContextVar[ShardingRules | None] = contextvars.ContextVar(
    "sharding_rules", default=None
)


@contextlib.contextmanager
def use_rules(rules: ShardingRules) -> Iterator[None]:
    """Makes `rules` those of what is traced inside, as `jax.set_mesh` does with a mesh."""
    token = _ACTIVE.set(rules)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active_rules() -> ShardingRules:
    """The rules of the innermost `use_rules`, or the default ones."""
    return _ACTIVE.get() or ShardingRules()


def mesh_axes(name: str | None, mesh_shape: Mapping[str, int], rules: Rules) -> tuple[str, ...]:
    """The mesh axes that a logical axis is split over.

    Args:
        name: a name of `rules`, or None, which is never split.
        mesh_shape: size of each mesh axis.
        rules: mesh axis, tuple of mesh axes or None for each logical name.

    Raises:
        UserError: when the name is not in `rules`, or its rule names an axis that the mesh lacks.
    """
    if name is None:
        return ()
    if name not in rules:
        raise UserError(
            f"Logical axis {name!r} is none of {', '.join(rules)}{nearest(name, rules)}."
        )
    return _known_axes("The rule", name, rules[name], mesh_shape)


def partition_spec(
    logical_axes: LogicalAxes,
    mesh_shape: Mapping[str, int],
    rules: Rules,
    shape: Sequence[int] | None = None,
) -> PartitionSpec:
    """Translates the logical axes of one array into the mesh axes that it is split over.

    An array cannot be split over one mesh axis twice: the first dimension that wants it gets it.

    Args:
        logical_axes: a name for each dimension, or None for a dimension that is never split.
        mesh_shape: size of each mesh axis.
        rules: mesh axis, tuple of mesh axes or None for each logical name.
        shape: when given, a dimension that its mesh axes do not divide stays whole, and leaves them
            to later dimensions.

    Raises:
        UserError: when a name is not in `rules`, or a rule names an axis that the mesh lacks.
        ValueError: when `shape` has another number of dimensions than `logical_axes`.
    """
    if shape is not None and len(shape) != len(logical_axes):
        raise ValueError(f"{tuple(logical_axes)} names the axes of an array of shape {shape}.")
    entries: list[MeshAxes] = []
    taken: set[str] = set()
    for dimension, name in enumerate(logical_axes):
        axes = tuple(axis for axis in mesh_axes(name, mesh_shape, rules) if axis not in taken)
        ways = 1
        for axis in axes:
            ways *= mesh_shape[axis]
        if not axes or (shape is not None and shape[dimension] % ways):
            entries.append(None)
            continue
        taken.update(axes)
        entries.append(axes if len(axes) > 1 else axes[0])
    return PartitionSpec(*entries)


def constrain(x: jax.Array, logical_axes: LogicalAxes, rules: Rules | None = None) -> jax.Array:
    """Constrains the sharding of an activation to what its logical axes stand for.

    The mesh is the one of `jax.set_mesh`; without one, or on a single device, only the names are
    checked.

    Args:
        x: array with as many dimensions as `logical_axes`.
        logical_axes: a name of `rules`, or None, for each dimension.
        rules: mesh axes of each logical name; by default the active rules of activations.

    Raises:
        UserError: when a name is unknown.
    """
    rules = active_rules().activations if rules is None else rules
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
