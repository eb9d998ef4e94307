"""seqio tasks and mixtures in our rooms: the same tokens as the shorthand, by every route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dlm_jax.data import tasks
from dlm_jax.data.loader import Loader
from dlm_jax.data.packing import evaluation_batches
from dlm_jax.data.table import build_table
from dlm_jax.data.tasks import Mixture, TextTask, get_task
from dlm_jax.data.vocabularies import ByteVocabulary, CharacterVocabulary
from dlm_jax.errors import UserError

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")

VOCABULARY = ByteVocabulary()
PAIRS = [(f"Wört {n}>", "ß" * (n % 5 + 1)) for n in range(23)]


def text_task(plain: bool = False) -> TextTask:
    records = [{"i": one, "t": other} for one, other in PAIRS]
    return TextTask("text_v1.x", {"train": lambda: records}, "{t}", None if plain else "{i}")


def exact_match(targets: list[str], predictions: list[str]) -> dict[str, float]:
    return {"exact_match": float(np.mean([a == b for a, b in zip(targets, predictions)]))}


def dataset(split: str, shuffle_files: bool, seed: Any = None) -> Any:
    inputs, targets = zip(*PAIRS)
    return tf.data.Dataset.from_tensor_slices({"inputs": list(inputs), "targets": list(targets)})


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, str]]:
    from dlm_jax.data.seqio_tasks import as_seqio

    def add(name: str, *, append_eos: bool, plain: bool = False, adapted: Any = None) -> str:
        feature = seqio.Feature(adapted or as_seqio(VOCABULARY), add_eos=append_eos)
        keys = ["targets"] if plain else ["inputs", "targets"]
        drop = [lambda ds: ds.map(lambda x: {"targets": x["targets"]})] if plain else []
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(dataset, splits=("train",)),
            preprocessors=[*drop, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features=dict.fromkeys(keys, feature),
            postprocess_fn=lambda text, example=None, is_target=False: text.lower(),
            metric_fns=[exact_match],
        )
        return name

    registered = {
        "eos": add("seqio_v1.eos", append_eos=True),
        "bare": add("seqio_v1.bare", append_eos=False),
        "plain": add("seqio_v1.plain", append_eos=True, plain=True),
        "foreign": add(
            "seqio_v1.foreign", append_eos=True, adapted=as_seqio(CharacterVocabulary("abc"))
        ),
    }
    seqio.MixtureRegistry.add("seqio_v1.mix", [("seqio_v1.eos", 3), ("seqio_v1.bare", 1)])
    yield registered
    for name in registered.values():
        seqio.TaskRegistry.remove(name)
    seqio.MixtureRegistry.remove("seqio_v1.mix")


@pytest.mark.parametrize("which", ["eos", "bare", "plain"])
def test_table_of_a_seqio_task_is_that_of_the_shorthand(names: dict[str, str], which: str) -> None:
    task = get_task(names[which])
    assert not isinstance(task, Mixture)
    assert task.plain_text == (which == "plain")
    ours = build_table(text_task(plain=which == "plain"), "train", VOCABULARY, 40)
    theirs = build_table(task, "train", VOCABULARY, 40)
    assert theirs.fingerprint == ours.fingerprint
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)
    np.testing.assert_array_equal(theirs.prompt_lengths, ours.prompt_lengths)
    assert list(task.examples("train")) == list(text_task(which == "plain").examples("train"))


@pytest.mark.parametrize("which", ["eos", "bare", "plain"])
def test_converter_gives_the_batches_of_the_shorthand(names: dict[str, str], which: str) -> None:
    from dlm_jax.data.converter import DiffusionFeatureConverter

    plain = which == "plain"
    converter = DiffusionFeatureConverter(VOCABULARY, plain_text=plain)
    lengths = {"targets": 12} if plain else {"inputs": 16, "targets": 12}
    converted = seqio.get_dataset(
        mixture_or_task_name=names[which],
        task_feature_lengths=lengths,
        dataset_split="train",
        shuffle=False,
        feature_converter=converter,
    )
    theirs = list(converted.batch(23).as_numpy_iterator())[0]
    table = build_table(text_task(plain), "train", VOCABULARY, 40)
    ours = next(evaluation_batches(table, 23, sum(lengths.values()) + 2))
    assert set(theirs) == set(ours)
    for name, array in ours.items():
        assert theirs[name].dtype == array.dtype, name
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)
    # <s> is id 0 and counts as a token; what follows the last one is padding by segment id only.
    assert (theirs["tokens"][:, 0] == 0).all() and (theirs["segment_ids"][:, 0] == 1).all()


def test_seqio_mixture_in_a_loader(names: dict[str, str]) -> None:
    loader = Loader("seqio_v1.mix", VOCABULARY, batch_size=8, length=60, prefetch=0)
    while loader.counts.examples < 1024:
        next(loader)
    proportions = loader.counts.proportions
    assert proportions["seqio_v1.eos"] == pytest.approx(0.75, abs=0.02)
    assert proportions["seqio_v1.bare"] == pytest.approx(0.25, abs=0.02)


def test_metrics_go_through_the_postprocessor(names: dict[str, str]) -> None:
    task = get_task(names["eos"])
    assert not isinstance(task, Mixture)
    (metric,) = task.metrics
    assert metric(["Yes", "no"], ["yES", "on"]) == {"exact_match": 0.5}


def test_seqio_vocabulary_agrees_with_ours_in_and_out_of_the_graph() -> None:
    from dlm_jax.data.seqio_tasks import as_seqio

    adapted = as_seqio(VOCABULARY)
    ids = VOCABULARY.encode("Größe 7")
    assert adapted.encode("Größe 7") == ids
    assert adapted.encode_tf(tf.constant("Größe 7")).numpy().tolist() == ids
    assert adapted.decode([0, *ids, 2, *ids]) == "Größe 7"
    assert adapted.decode_tf(tf.constant(ids)).numpy().decode() == "Größe 7"
    batch = adapted.decode_tf(tf.constant([ids, ids])).numpy()
    assert [text.decode() for text in batch] == ["Größe 7"] * 2
    assert (adapted.pad_id, adapted.eos_id, adapted.bos_id, adapted.unk_id) == (1, 2, 0, 3)
    assert adapted.vocab_size == 261
    assert adapted == as_seqio(ByteVocabulary()) != as_seqio(CharacterVocabulary("a"))


def test_what_is_refused(names: dict[str, str]) -> None:
    from dlm_jax.data.converter import DiffusionFeatureConverter

    with pytest.raises(UserError, match="takes id 0 for padding"):
        DiffusionFeatureConverter(VOCABULARY, pack=True)
    foreign = get_task(names["foreign"])
    assert not isinstance(foreign, Mixture)
    with pytest.raises(UserError, match="with another vocabulary"):
        build_table(foreign, "train", VOCABULARY, 40)
    with pytest.raises(UserError, match=r"no split 'trian' \(did you mean train\?\)"):
        build_table(get_task(names["eos"]), "trian", VOCABULARY, 40)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"did you mean seqio_v1\.mix\?"):
        get_task("seqio_v1.mxi")
    assert {*names.values(), "seqio_v1.mix"} <= set(tasks.list_tasks())
