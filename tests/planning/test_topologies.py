"""Names of slices: what they stand for, which links wrap, and what is said about wrong ones."""

from __future__ import annotations

import importlib.util

import pytest

from dlm_jax.errors import UserError
from dlm_jax.planning.topologies import Topology


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v6e-8", "v6e:2x4", 8),
        ("v5p:2x2x1", "v5p:2x2x1", 4),
        ("v5p-8", "v5p:2x2x1", 4),  # the name counts cores, two of which make a chip
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-16", "v4:2x2x2", 8),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 4),
        ("h100:16", "h100:16", 16),
        ("cpu:8", "cpu:8", 8),
    ],
)
def test_names(text, name, chips) -> None:
    topology = Topology.parse(text)
    assert (topology.name, topology.chips) == (name, chips)
    assert Topology.parse(topology.name) == topology


@pytest.mark.parametrize(
    ("text", "wrap"),
    [
        # Wrap-around links need whole cubes of 4x4x4, or whole v5e and v6e pods.
        ("v5e:2x2", (False, False, False)),
        ("v5e:4x4", (False, False, False)),
        ("v5e:8x16", (False, True, False)),
        ("v5e:16x16", (True, True, False)),
        ("v5p:2x2x1", (False, False, False)),
        ("v4:2x2x2", (False, False, False)),
        ("v5p:4x4x4", (True, True, True)),
        ("v5e:1x1", (False, False, False)),
    ],
)
def test_links_that_wrap(text, wrap) -> None:
    assert Topology.parse(text).wrap == wrap


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v5e", 1, "v5e is no topology"),
        ("v5:4x4", 1, r"v5:4x4 is no topology \(did you mean v5.:4x4"),
        ("v7x:2x2x1", 1, r"v7x:2x2x1 is no topology \(did you mean tpu7x:2x2x1\?\)"),
        ("v5e:4x4x4", 1, "has 3 dimension.*v5e has 2: v5e:1x1"),
        ("v5p:4x4", 1, "has 2 dimension.*v5p has 3: v5p:2x2x1"),
        ("v5p:3x3x3", 1, "cannot be cut into hosts of 2x2 chips"),
        ("v5e-12", 1, "v5e-12 is none of v5e-1, v5e-4, v5e-8, v5e-16"),
        ("h100:12", 1, "hosts have 8 GPUs each"),
        ("h100:8", 2, "only TPUs have slices"),
        ("v5e:4x4", 0, "--slices=0 is not a positive number"),
    ],
)
def test_wrong_names_are_a_sentence(text, slices, message) -> None:
    with pytest.raises(UserError, match=message):
        Topology.parse(text, slices)


def test_the_missing_compiler_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("dlm_jax.planning.topologies.prepare_environment", lambda: None)
    with pytest.raises(UserError, match=r"v5e:2x2 needs .* pip install 'dlm_jax\[plan\]'"):
        Topology.parse("v5e:2x2").prepare()


def test_gpus_of_one_host_are_one_domain() -> None:
    topology = Topology.parse("h100:16")
    device: object = None
    assert [topology.domain(index, device) for index in (0, 7, 8, 15)] == [0, 0, 1, 1]
