"""Weights go straight to where they will lie: no device, and no read, ever holds a whole table."""

from __future__ import annotations

import contextlib
import json

import jax
import numpy as np
import pytest
from flax import nnx

from dlm_jax.checkpoints.huggingface import ForeignWeights, _Reader, _Tensors, export_folder
from dlm_jax.checkpoints.loading import LoadedModel, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig

CONFIG = EncoderConfig(
    family="xlm-roberta",
    vocab_size=264,
    embed_dim=16,
    num_layers=3,
    num_heads=4,
    mlp_dim=32,
    max_positions=34,
    type_vocab_size=1,
)

ON_EIGHT_DEVICES = """
import json, pathlib, tempfile
import jax, numpy as np
from flax import nnx
from dlm_jax.checkpoints import huggingface
from dlm_jax.checkpoints.huggingface import export_folder
from dlm_jax.checkpoints.loading import LoadedModel, find_model, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.sharding import placed_parameters

config = EncoderConfig(**CONFIG)
expected = jax.device_get(encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(0))))
folder = pathlib.Path(tempfile.mkdtemp())
save_model(LoadedModel(ModelDescription(config), ByteVocabulary(), expected), folder / "run")
export_folder(config, expected, None, folder / "hf")
ByteVocabulary().save(folder / "vocabulary")
read, largest_read = huggingface._Tensors.read, [0]

def watched(self, name, spans):
    part = read(self, name, spans)
    largest_read[0] = max(largest_read[0], part.size)
    return part

huggingface._Tensors.read = watched
table, report = config.vocab_size * config.embed_dim, []
for name, vocabulary in (("run", None), ("hf", str(folder / "vocabulary"))):
    for shape in ((1, 8, 1), (2, 2, 2)):
        mesh, largest_read[0] = make_mesh(MeshConfig(*shape)), 0
        with jax.set_mesh(mesh):
            abstract = placed_parameters(config, mesh)
            found = find_model(folder / name, vocabulary=vocabulary).read(abstract)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
        assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(
            lambda x: x.sharding, abstract)
        on_a_device = max(
            shard.data.size for array in jax.live_arrays() for shard in array.addressable_shards)
        report.append([name, largest_read[0] / table, on_a_device / table])
        del found
print(json.dumps(report))
"""


def test_no_table_is_whole_on_a_device_or_in_a_read(on_eight_devices):
    values = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    report = on_eight_devices(ON_EIGHT_DEVICES.replace("**CONFIG", f"**{values!r}"))
    assert [name for name, *_ in report] == ["run", "run", "hf", "hf"]
    for name, largest_read, on_a_device in report:
        assert largest_read < 1 and on_a_device < 1, json.dumps(report)
        assert (name == "run") == (largest_read == 0)


ON_TWO_PROCESSES = """
import json, pathlib, sys
import jax, numpy as np
from flax import nnx
from dlm_jax.parallel import multihost
from dlm_jax.parallel.cluster import Cluster

multihost.initialize(Cluster(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "the test"))
from dlm_jax.checkpoints import huggingface
from dlm_jax.checkpoints.loading import find_model
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig, make_mesh
from dlm_jax.training.sharding import placed_parameters

folder, read, numbers = pathlib.Path(sys.argv[4]), huggingface._Tensors.read, [0]

def watched(self, name, spans):
    part = read(self, name, spans)
    numbers[0] += part.size
    return part

huggingface._Tensors.read = watched
mesh, shares = make_mesh(MeshConfig(data=1, fsdp=4)), {}
with jax.set_mesh(mesh):
    for name, vocabulary in (("run", None), ("hf", str(folder / "vocabulary"))):
        model = find_model(folder / name, vocabulary=vocabulary)
        found = model.read(placed_parameters(model.description.config, mesh))
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            expected = np.load(folder / f"{name}.npy")
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, expected[shard.index])
print(json.dumps(numbers[0] / model.description.config.num_parameters()), flush=True)
multihost.leave(0)
"""


def test_two_hosts_read_their_own_parts(on_processes, tmp_path):
    parameters = jax.device_get(encoders.parameters(encoders.Encoder(CONFIG, rngs=nnx.Rngs(0))))
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        np.save(tmp_path / jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    model = LoadedModel(ModelDescription(CONFIG), ByteVocabulary(), parameters)
    save_model(model, tmp_path / "run")
    export_folder(CONFIG, parameters, None, tmp_path / "hf")
    ByteVocabulary().save(tmp_path / "vocabulary")
    shares = on_processes(ON_TWO_PROCESSES, 2, tmp_path, devices=2)
    # Half of what is split, and all of the few parameters that are not.
    assert all(0.5 <= share < 0.75 for share in shares), shares


@pytest.mark.parametrize("family", ["bert", "xlm-roberta-xl"])
def test_any_part_of_any_parameter_is_that_part_of_the_whole(family, tmp_path):
    changed = {"family": family}
    changed |= {"position_offset": 0} if family == "bert" else {"norm_placement": "pre"}
    config = EncoderConfig(**{**vars(CONFIG), **changed})
    expected = jax.device_get(encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(1))))
    noise = np.random.default_rng(0)
    expected = jax.tree.map(lambda x: noise.normal(size=x.shape).astype(np.float32), expected)
    export_folder(config, expected, None, tmp_path / "hf")
    found = ForeignWeights.find(tmp_path / "hf")
    with contextlib.ExitStack() as stack:
        reader = _Reader(found.config, _Tensors(found.folder, stack), 0)
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            for _ in range(8):
                ends = [sorted(noise.choice(size + 1, 2, replace=False)) for size in leaf.shape]
                index = tuple(slice(int(begin), int(end)) for begin, end in ends)
                np.testing.assert_array_equal(reader.part(name, index), leaf[index], name)
