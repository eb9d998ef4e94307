"""A model that is split over devices gets the figures that it gets on one."""

from __future__ import annotations

from pathlib import Path

import pytest

TOYS = Path(__file__).parents[1] / "end_to_end"
PROGRAM = """
import json, pathlib, sys, tempfile
import jax
from flax import nnx
sys.path.insert(0, TOYS)
import toy_tasks
from dlm_jax.checkpoints.loading import LoadedModel, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.evaluation.evaluate import evaluate
from dlm_jax.evaluation.evaluators import GenerationEvaluator, LikelihoodEvaluator
from dlm_jax.models import encoder as encoders
from dlm_jax.models.config import EncoderConfig
from dlm_jax.parallel.mesh import MeshConfig

config = EncoderConfig(vocab_size=264, embed_dim=16, num_layers=1, num_heads=2, mlp_dim=16,
                       max_positions=50)
folder = pathlib.Path(tempfile.mkdtemp()) / "run"
parameters = encoders.parameters(encoders.Encoder(config, rngs=nnx.Rngs(0)))
save_model(LoadedModel(ModelDescription(config, length=48), ByteVocabulary(), parameters), folder)
del parameters
held = []

class Look(LikelihoodEvaluator):
    def __call__(self, denoiser, *arguments):
        table = denoiser.embeddings.token.embedding[...]
        held.append(table.addressable_shards[0].data.size / table.size)
        return super().__call__(denoiser, *arguments)

evaluators = (
    Look(task="toy_v1.echo", max_examples=8, draws=2, batch_size=8),
    GenerationEvaluator(task="toy_v1.echo", max_examples=8, batch_size=8, steps=2, canvas="fixed",
                        response_lengths=(4,)),
)
figures = [evaluate(folder, evaluators=evaluators, mesh=mesh, report=False)["eval/toy_v1.echo"]
           for mesh in (None, MeshConfig(data=1, fsdp=8))]
print(json.dumps({"figures": figures, "held": held}))
"""


def test_figures_are_the_same_and_no_device_holds_the_model(on_eight_devices):
    found = on_eight_devices(PROGRAM.replace("TOYS", repr(str(TOYS))))
    alone, split = found["figures"]
    assert alone["n"] == 8 and alone["nelbo"] > 0
    assert split == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert found["held"] == [1.0, 1 / 8]
