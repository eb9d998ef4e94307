"""Modules and the trees of their parameters: dicts of arrays, of shapes, of logical axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Parameters = dict[str, Any]
Structure = tuple[nnx.GraphDef, nnx.State]


def structure_of(create: Callable[[], nnx.Module]) -> Structure:
    """The parts of a module with shapes in place of arrays; allocates nothing."""
    graphdef, state = nnx.split(nnx.eval_shape(create))
    return graphdef, state


def shapes(structure: Structure) -> Parameters:
    """The tree of parameters as `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(structure[1])


def axes(structure: Structure) -> Parameters:
    """The tree of parameters with a tuple of logical axis names in place of each array."""
    names = jax.tree.map(
        lambda variable: variable.get_metadata("logical_axes"),
        structure[1],
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return nnx.to_pure_dict(names)


def parameters(module: nnx.Module) -> Parameters:
    """The arrays of a module as a tree of dicts; the arrays are shared, not copied."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def build(structure: Structure, tree: Parameters) -> Any:
    """The module that holds the arrays of `tree`; nothing is initialised or copied.

    Args:
        structure: of the module.
        tree: the tree of `shapes(structure)` with arrays (or tracers) as leaves.

    Raises:
        ValueError: when the tree's names or shapes are not those of the module.
    """
    wanted = {path: leaf.shape for path, leaf in flat(shapes(structure))}
    given = {path: leaf.shape for path, leaf in flat(tree)}
    for path in sorted(wanted.keys() | given.keys()):
        if wanted.get(path) != given.get(path):
            raise ValueError(
                f"Parameter {path} has shape {given.get(path)}, expected {wanted.get(path)}."
            )
    graphdef, abstract = structure
    state = jax.tree.map(lambda leaf: leaf, abstract)  # the cached one must stay abstract
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graphdef, state)


def flat(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, such as 'layers/mlp/up/kernel'."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
