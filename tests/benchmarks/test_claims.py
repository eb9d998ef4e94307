"""The page of the claims is what the results make of it, and its commands can be run."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from dlm_jax import config
from dlm_jax.cli.configurables import CONFIGURABLES, ENTRIES

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "docs/claims", ROOT / "docs/claims.md"


@pytest.fixture
def claims(monkeypatch):
    """Imports a module of `benchmarks.claims`, which is no installed package."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return lambda name: importlib.import_module(f"benchmarks.claims.{name}")


def test_the_page_is_what_the_results_make_of_it(claims):
    page = claims("page")
    documents = page.read(RESULTS)
    text = PAGE.read_text(encoding="utf-8")
    assert text == page.render(documents)
    for link in re.findall(r"\]\((claims/[^)]+)\)", text):
        assert 0 < (PAGE.parent / link).stat().st_size < (60 << 10 if link.endswith("png") else 1e6)
    for document in documents.values():
        experiment = claims("experiments").EXPERIMENTS[document["experiment"]]
        assert document["commands"] == [command.line for command in experiment.commands]
    # A figure that is not in the files is not on the page.
    assert "Not measured" in page.render({})


def test_every_command_of_an_experiment_loads(claims):
    loaded = set()
    for experiment in claims("experiments").EXPERIMENTS.values():
        for command in experiment.commands:
            entry = {"train": "train", "sweep": "sweep", "length": "length_stage"}.get(command.verb)
            if entry is None or command.line in loaded:
                continue
            words = shlex.split(command.line)[2:]
            files = [w.removeprefix("--gin_file=") for w in words if w.startswith("--gin_file=")]
            values = [w.removeprefix("--gin.") for w in words if w.startswith("--gin.")]
            arguments = {"other_entries": ENTRIES, "supplied": ["run_dir"], "importer": str}
            assert config.load(files, values, entry, CONFIGURABLES, **arguments).values()
            loaded.add(command.line)
    assert len(loaded) > 10


def test_bleu_of_two_systems_is_compared_on_the_same_resamples(claims):
    paired = claims("measuring").paired_bleu
    target = "a man in a red shirt walks along the wide street ."
    good = [{"index": i, "target": target, "prediction": target} for i in range(8)]
    bad = [{**row, "prediction": "a man in a red shirt sits on a bench ."} for row in good]
    same = paired(good, good)
    assert (same["difference"], same["standard_error"]) == (0.0, 0.0)
    there, back = paired(bad, good), paired(good, bad)
    assert there["difference"] == -back["difference"] > 20
    # All rows are alike, so no resample differs from another.
    assert there["standard_error"] == pytest.approx(0.0, abs=1e-9)
    assert (there["share_above_0"], back["share_above_0"]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="different examples"):
        paired(good, good[1:])


def test_a_claim_that_the_figures_contradict_is_said_not_to_hold(claims):
    page = claims("page")
    document = copy.deepcopy(page.read(RESULTS)["pretraining"])
    for difference, words in (
        ([0.5, 0.1], "Holds."),
        ([0.1, 0.1], "Undecided."),
        ([-0.5, 0.1], "Does not hold here."),
    ):
        document["nelbo"]["difference"] = difference
        text = page.render({"pretraining": document})
        assert f"**{words}** NELBO" in text and f"{difference[0]:.2f} ± 0.10" in text
