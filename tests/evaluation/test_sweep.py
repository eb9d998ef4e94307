"""Sweeps: which cells there are, what is kept of them, and what is made of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest
from flax import nnx

from dlm_jax.checkpoints.loading import LoadedModel, load_model, save_model
from dlm_jax.checkpoints.run_folder import ModelDescription
from dlm_jax.data import tasks
from dlm_jax.data.few_shot import name_with_shots
from dlm_jax.data.tasks import import_task_modules, register_task
from dlm_jax.data.vocabularies import ByteVocabulary
from dlm_jax.errors import UserError
from dlm_jax.evaluation.evaluators import GenerationEvaluator
from dlm_jax.evaluation.scaling_figures import rows_of, scaling_figures
from dlm_jax.evaluation.sweep import CellResult, Sweep, check_tasks, run_cells
from dlm_jax.evaluation.sweep_report import csv_table, markdown_table, write_sweep_report
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
        if self.task == "mixture_v1.all":
            parts = {"exact_match/a": 0.5, "exact_match/b": 0.25, "exact_match/b_se": 0.1}
            return {"eval/a_v1.x": figures, "eval/b_v1.y": figures | parts}
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
    assert result.tasks["b_v1.y"]["exact_match"] == 1 - 1 / 64
    assert result.parameters > again.result(cells[0]).parameters
    # Another setting of the evaluator is another cell, never an old result under a new name.
    other = make(tmp_path, models, evaluator=Quality(fail_at=77))
    assert all(other.result(cell) is None for cell in other.cells())
    assert not {c.identity for c in other.cells()} & {c.identity for c in cells}


def test_other_weights_of_the_same_name_and_step_are_another_cell(tmp_path, models) -> None:
    model = tmp_path / "model"
    shutil.copytree(models[0], model)
    sweep = make(tmp_path, [str(model)])
    before = sweep.cells()
    assert run_cells(sweep, before) == 0
    assert all(sweep.result(cell) for cell in sweep.cells())
    weights = load_model(model)
    shutil.rmtree(model)
    halved = {
        **weights.parameters,
        "head": jax.tree.map(lambda x: x / 2, weights.parameters["head"]),
    }
    save_model(dataclasses.replace(weights, parameters=halved), model)
    after = sweep.cells()
    assert [str(cell) for cell in after] == [str(cell) for cell in before]
    assert not any(sweep.result(cell) for cell in after)


def test_a_failed_cell_stops_no_other_and_is_tried_again(tmp_path, models, monkeypatch) -> None:
    sweep = make(tmp_path, models, evaluator=Quality(fail_at=4))
    cells, lines = sweep.cells(), []
    assert run_cells(sweep, cells, lines.append) == 4
    assert [sweep.failure(cell) for cell in cells] == [None, "no such luck"] * 4
    assert lines[1].endswith("a_v1.x steps=4: failed: no such luck")
    page = write_sweep_report(sweep).read_text(encoding="utf-8")
    assert "4 of 8 cells are finished." in page and page.count("no such luck") == 4
    # The same evaluator with better luck.
    monkeypatch.setattr(Quality, "__call__", lambda *_: {"eval/any": {"exact_match": 1.0}})
    assert run_cells(sweep, [cell for cell in cells if sweep.result(cell) is None]) == 0
    assert [sweep.attempts(cell) for cell in cells] == [1, 2] * 4
    page = write_sweep_report(sweep).read_text(encoding="utf-8")
    assert "8 of 8 cells are finished." in page and "no such luck" not in page
    assert page.count("finished at try 2") == 4


def test_a_cell_finds_the_length_predictor_beside_its_model(tmp_path, models, monkeypatch) -> None:
    sweep, seen = make(tmp_path, models, tasks=["a_v1.x"], grid={}), []

    def look(self, denoiser, vocabulary, description, folder, step):
        seen.append((folder.path, folder.length_predictor.path))
        return {"eval/a_v1.x": {"n": 1.0}}

    monkeypatch.setattr(Quality, "__call__", look)
    assert run_cells(sweep, sweep.cells()) == 0
    assert seen == [
        (sweep.folder(cell).path, Path(model) / "length_predictor")
        for cell, model in zip(sweep.cells(), models)
    ]


def test_a_cell_whose_process_was_killed_is_told_from_one_that_never_began(
    tmp_path, models, monkeypatch
) -> None:
    sweep = make(tmp_path, models[:1], tasks=["a_v1.x"])
    first, second = sweep.cells()

    def killed(*_):
        raise KeyboardInterrupt  # no exception that a cell may catch

    monkeypatch.setattr(Quality, "__call__", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_cells(sweep, [first, second])
    assert sweep.failure(second) is None
    assert sweep.failure(first) == (
        "begun, and not finished: killed, or still running (tried 2 times)"
    )
    page = write_sweep_report(sweep).read_text(encoding="utf-8")
    assert page.count("killed, or still running") == page.count("not computed yet") == 1


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
    assert [line.split(" | ")[0] for line in markdown[2:]] == ["| a_v1.x"] * 4 + ["| b_v1.y"] * 4
    figures = scaling_figures(rows_of([sweep.result(cell) for cell in sweep.cells()]))
    assert [figure.name for figure in figures] == ["scaling_0_exact_match", "scaling_1_exact_match"]
    along = "exact match against parameters and denoiser evaluations (NFE), with 95% intervals."
    assert [figure.description for figure in figures] == [f"a_v1.x: {along}", f"b_v1.y: {along}"]
    assert page.read_text(encoding="utf-8").count("<figure") == 2
    # Without a second model or another number of steps there is no axis to draw along.
    assert scaling_figures(rows_of([sweep.result(sweep.cells()[0])])) == []


def test_a_mixture_has_a_row_and_a_panel_for_each_member(tmp_path, models) -> None:
    sweep = make(tmp_path, models, tasks=["mixture_v1.all"])
    assert run_cells(sweep, sweep.cells()) == 0
    page = write_sweep_report(sweep)
    with (page.parent / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["a_v1.x", "b_v1.y"] * 4
    assert {row["exact_match/b_se"] for row in rows} == {"", "0.1"}
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure") == 2 and ">b_v1.y<" in text
    # Parts of a benchmark are folded away, and not in the table for people.
    assert "exact_match of 2 parts" in text and "0.25 ± 0.10" in text
    assert "exact_match/b" not in (page.parent / "table.md").read_text(encoding="utf-8")


def test_runs_of_one_name_are_lines_of_their_own(tmp_path, models) -> None:
    copies = [str(tmp_path / folder / "run") for folder in ("small", "large")]
    for model, copy in zip(models, copies):
        shutil.copytree(model, copy)
    sweep = make(tmp_path, copies, tasks=["a_v1.x"])
    assert run_cells(sweep, sweep.cells()) == 0
    [figure] = scaling_figures(rows_of([sweep.result(cell) for cell in sweep.cells()]))
    assert ">small/run<" in figure.svg and ">large/run<" in figure.svg
    assert str(tmp_path) not in figure.svg


def test_checkpoints_are_an_axis(tmp_path, models) -> None:
    [folder] = (Path(models[0]),)
    source = load_model(folder)
    run = tmp_path / "run"
    for step in (0, 5, 20):
        if step:
            shutil.copytree(folder / "checkpoints/0", run / f"checkpoints/{step}")
        else:
            save_model(source, run)
    sweep = make(tmp_path, [str(run), models[1]], tasks=["a_v1.x"], checkpoints="all")
    assert [(cell.step, cell.settings["steps"]) for cell in sweep.cells()] == [
        (0, 1), (0, 4), (5, 1), (5, 4), (20, 1), (20, 4), (0, 1), (0, 4)
    ]  # fmt: skip
    chosen = make(tmp_path, [str(run)], tasks=["a_v1.x"], checkpoints=[5, 20])
    cells = chosen.cells()
    assert [cell.step for cell in cells] == [5, 5, 20, 20]
    assert len({cell.identity for cell in cells}) == 4
    assert run_cells(chosen, cells) == 0
    figures = scaling_figures(rows_of([chosen.result(cell) for cell in cells]))
    assert [figure.description for figure in figures] == [
        "a_v1.x: exact match against denoiser evaluations (NFE) and training step, "
        "with 95% intervals."
    ]
    with pytest.raises(UserError, match="step 7, of which run .* it has 0, 5, 20"):
        make(tmp_path, [str(run)], checkpoints=[7]).cells()


def test_shots_are_an_axis(tmp_path, models, monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_REGISTRY", dict(tasks._REGISTRY))
    for name in ("shots_v1.a", "shots_v1.a_2_shot", "shots_v1.b_0_shot", "shots_v1.b_2_shot"):
        register_task(name, splits={"test": lambda: [{}]}, inputs="x", targets="y")
    sweep = make(tmp_path, models, tasks=["shots_v1.a", "shots_v1.b_2_shot"], shots=[0, 2], grid={})
    cells = sweep.cells()
    assert [cell.evaluator.task for cell in cells[:4]] == [
        "shots_v1.a", "shots_v1.a_2_shot", "shots_v1.b_0_shot", "shots_v1.b_2_shot"
    ]  # fmt: skip
    assert run_cells(sweep, cells) == 0
    page = write_sweep_report(sweep)
    with (page.parent / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["shots"]) for row in rows[:2]] == [
        ("shots_v1.a", "0"),
        ("shots_v1.a", "2"),
    ]
    with pytest.raises(UserError, match="'shots_v1.a' is not registered with 3 .* it is with 2"):
        make(tmp_path, models, tasks=["shots_v1.a"], shots=[3]).cells()


@pytest.mark.parametrize(
    ("name", "shots", "expected"),
    [
        ("mgsm_v1.de", 3, "mgsm_v1.de_3_shot"),
        ("mgsm_v1.de_english_1_shot", 3, "mgsm_v1.de_english_3_shot"),
        ("mgsm_v1.de_english_1_shot", 0, "mgsm_v1.de_english_0_shot"),
        ("iwslt14_v1.de_en", 0, "iwslt14_v1.de_en_0_shot"),
        ("iwslt14_v1.de_en_2_shot", 1, "iwslt14_v1.de_en_1_shot"),
        ("mmlu_v1.all", 5, "mmlu_v1.all_5_shot"),
        ("bbh_v1.date_understanding", 3, "bbh_v1.date_understanding_3_shot"),
        ("tydiqa_v1.goldp", 1, "tydiqa_v1.goldp_1_shot"),
        ("gsm8k_v1.worked_8_shot", 0, "gsm8k_v1.worked"),
    ],
)
def test_shipped_tasks_are_found_by_their_shots(name, shots, expected) -> None:
    import_task_modules(["gsm8k", "translation", "mmlu", "bbh", "tydiqa"])
    assert name_with_shots(name, shots) == expected


def test_length_modes_are_values_of_the_grid(tmp_path, models) -> None:
    modes = {"canvas": ["oracle", "search", "fixed"], "length_beam": [1, 3]}
    sweep = make(tmp_path, models, tasks=["a_v1.x"], grid=modes, evaluator=GenerationEvaluator())
    cells = sweep.cells()
    assert len(cells) == len({cell.identity for cell in cells}) == 12
    assert {(cell.evaluator.canvas, cell.evaluator.length_beam) for cell in cells} == {
        (canvas, beam) for canvas in modes["canvas"] for beam in modes["length_beam"]
    }
    with_oracle = {"oracle_exact_match": 0.5, "oracle_exact_match_se": 0.1, "oracle_nfe": 2.0}
    searched = {"exact_match": 0.25, "nfe": 4.0}
    results = [
        CellResult(
            cell, 9, {"a_v1.x": with_oracle if cell.evaluator.canvas == "oracle" else searched}, 1.0
        )
        for cell in cells
    ]
    table = markdown_table(results)
    assert table.count("0.50 ± 0.10 (oracle)") == 4 and "oracle_exact" not in table
    assert "oracle_exact_match_se" in csv_table(results).splitlines()[0]
    # A mode that does not exist stops before anything is loaded.
    with pytest.raises(UserError, match="canvas is 'orcale'"):
        make(tmp_path, models, grid={"canvas": ["orcale"]}, evaluator=GenerationEvaluator()).cells()


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
        ({"models": ["a", "./a/"]}, 'sweep.models has "a" twice'),
        ({"grid": {"steps": [1, 2, 1]}}, r"sweep.grid\['steps'\] has 1 twice"),
        ({"checkpoints": "newst"}, "checkpoints is 'newst', and must be .*did you mean newest"),
        ({"checkpoints": []}, r"checkpoints is \[\], and must be"),
        ({"grid": {"step": [1]}}, "'step', which is no setting of Quality .did you mean steps"),
        ({"grid": {"task": ["a"]}}, "'task', which is no setting"),
        ({"grid": {"steps": []}}, r"sweep.grid\['steps'\] is \[\], and must be a list"),
        ({"grid": {"steps": "14"}}, "is '14', and must be a list"),
        (
            {"grid": {"steps": [1, 4.5]}},
            r"\['steps'\] has the value 4.5, and Quality.steps takes int",
        ),
        ({"evaluator": print}, "must be a dataclass"),
    ],
)
def test_mistakes_are_sentences(tmp_path, models, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, **{"models": models, **changes})


def test_a_model_that_is_not_there_stops_before_any_is_measured(tmp_path, models) -> None:
    wrong = f"{models[0]}_"
    with pytest.raises(UserError, match=r"where nothing is \(did you mean"):
        make(tmp_path, [*models, wrong], tasks=["a_v1.x"], grid={}).cells()
    # What is fetched when it is needed has no folder yet.
    make(tmp_path, ["hf:org/name"], tasks=["a_v1.x"], grid={}).cells()


def test_an_unknown_task_stops_before_a_model_is_loaded(tmp_path, models, monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_REGISTRY", dict(tasks._REGISTRY))
    register_task("known_v1.x", splits={"test": lambda: [{}]}, inputs="x", targets="y")
    sweep = make(tmp_path, models, tasks=["known_v1.x", "knwon_v1.x"])
    check_tasks(sweep.cells()[:2])
    with pytest.raises(UserError, match="Unknown task 'knwon_v1.x' .did you mean known_v1.x"):
        check_tasks(sweep.cells())


def test_a_damaged_result_is_named(tmp_path, models) -> None:
    sweep = make(tmp_path, models[:1], tasks=["a_v1.x"], grid={})
    [cell] = sweep.cells()
    run_cells(sweep, [cell])
    file = sweep.folder(cell).path / "result.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "figures": 3}))
    with pytest.raises(UserError, match=r"result.json is damaged .* remove it"):
        sweep.result(cell)
