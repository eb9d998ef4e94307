"""Sweeps: which cells there are, what is kept of them, and what is made of them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from flax import nnx

from dlm_jax.checkpoints.loading import LoadedModel, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.sweep import Sweep, run_cells
from dlm_jax.evaluation.sweep_report import scaling_figures, write_sweep_report
from dlm_jax.models.config import EncoderConfig
from dlm_jax.models.encoder import Encoder, parameters

CALLS: list[tuple[str, int]] = []


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures that depend on the model's width and the steps; it fails where told to."""

    task: str | None = None
    steps: int = 1
    fail_at: int | None = None

    def __call__(self, denoiser, vocabulary, description, folder, step):
        CALLS.append((self.task, self.steps))
        if self.steps == self.fail_at:
            raise UserError("no such\nluck")
        quality = 1 - 1 / (self.steps * description.config.embed_dim)
        figures = {"exact_match": quality, "exact_match_se": 0.01, "nfe": self.steps, "n": 9.0}
        return {f"eval/{self.task}": figures | {"score": float("nan")}}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder, found = tmp_path_factory.mktemp("models"), []
    for width in (8, 16):
        config = EncoderConfig(261, width, 1, 1, width, max_positions=34)
        weights = parameters(Encoder(config, rngs=nnx.Rngs(0)))
        description = ModelDescription(config=config, task="toy_v1.own")
        save_model(LoadedModel(description, ByteVocabulary(), weights), folder / f"width_{width}")
        found.append(str(folder / f"width_{width}"))
    return found


def make(tmp_path: Path, models: list[str], **changes) -> Sweep:
    settings = {"tasks": ["a_v1.x", "b_v1.y"], "grid": {"steps": [1, 4]}, "evaluator": Quality()}
    return Sweep(tmp_path / "sweep", models, **(settings | changes))


def test_every_combination_is_a_cell_and_finished_ones_are_kept(tmp_path, models) -> None:
    sweep = make(tmp_path, models)
    cells = sweep.cells()
    assert len({cell.identity for cell in cells}) == len(cells) == 8
    CALLS.clear()
    assert run_cells(sweep, cells[:3]) == 0
    again = make(tmp_path, models)
    missing = [cell for cell in again.cells() if again.result(cell) is None]
    assert [cell.identity for cell in missing] == [cell.identity for cell in cells[3:]]
    assert run_cells(again, missing) == 0
    assert len(CALLS) == 8
    result = again.result(cells[-1])
    assert result.figures["exact_match"] == 1 - 1 / 64
    assert result.parameters > again.result(cells[0]).parameters
    # Another setting of the evaluator is another cell, never an old result under a new name.
    other = make(tmp_path, models, evaluator=Quality(fail_at=77))
    assert all(other.result(cell) is None for cell in other.cells())
    assert not {c.identity for c in other.cells()} & {c.identity for c in cells}


def test_a_failed_cell_stops_no_other_and_is_tried_again(tmp_path, models) -> None:
    sweep = make(tmp_path, models, evaluator=Quality(fail_at=4))
    cells, lines = sweep.cells(), []
    assert run_cells(sweep, cells, lines.append) == 4
    assert [sweep.failure(cell) for cell in cells] == [None, "no such luck"] * 4
    assert lines[1].endswith("a_v1.x steps=4: failed: no such luck")
    page = write_sweep_report(sweep).read_text(encoding="utf-8")
    assert "4 of 8 cells are finished." in page and page.count("no such luck") == 4


def test_the_table_holds_every_figure_and_the_page_its_plots(tmp_path, models) -> None:
    sweep = make(tmp_path, models)
    run_cells(sweep, sweep.cells())
    page = write_sweep_report(sweep)
    with (page.parent / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    first = rows[0]
    assert (first["model"], first["step"], first["task"]) == (models[0], "0", "a_v1.x")
    assert (first["steps"], first["exact_match"], first["exact_match_se"]) == ("1", "0.875", "0.01")
    assert first["score"] == "nan"
    markdown = (page.parent / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(markdown) == 10
    assert "0.875 ± 0.010" in markdown[2]
    figures = scaling_figures([sweep.result(cell) for cell in sweep.cells()])
    assert [figure.name for figure in figures] == [
        "scaling_exact_match_parameters",
        "scaling_exact_match_nfe",
    ]
    assert page.read_text(encoding="utf-8").count("<figure") == 2
    # Without a second model or another number of steps there is no axis to draw along.
    assert scaling_figures([sweep.result(sweep.cells()[0])]) == []


def test_a_model_without_tasks_is_measured_on_its_own(tmp_path, models) -> None:
    sweep = make(tmp_path, models[:1], tasks=[], grid={})
    [cell] = sweep.cells()
    assert (cell.task, cell.step, dict(cell.settings)) == ("toy_v1.own", 0, {})
    at_step = make(tmp_path, [f"{models[0]}/checkpoints/0"], tasks=[], grid={})
    assert at_step.cells()[0].step == 0
    assert run_cells(at_step, at_step.cells()) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "sweep.models is empty"),
        ({"grid": {"step": [1]}}, "'step', which is no setting of Quality .did you mean steps"),
        ({"grid": {"task": ["a"]}}, "'task', which is no setting"),
        ({"grid": {"steps": []}}, r"sweep.grid\['steps'\] is \[\], and must be a list"),
        ({"grid": {"steps": "14"}}, "is '14', and must be a list"),
        ({"evaluator": print}, "must be a dataclass"),
    ],
)
def test_mistakes_are_sentences(tmp_path, models, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, **{"models": models, **changes})


def test_a_damaged_result_is_named(tmp_path, models) -> None:
    sweep = make(tmp_path, models[:1], tasks=["a_v1.x"], grid={})
    [cell] = sweep.cells()
    run_cells(sweep, [cell])
    file = sweep.folder(cell).path / "result.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "figures": 3}))
    with pytest.raises(UserError, match=r"result.json is damaged .* remove it"):
        sweep.result(cell)
