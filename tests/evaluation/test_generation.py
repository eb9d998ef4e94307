from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dlm_jax.errors import UserError
from dlm_jax.evaluation import metrics
from dlm_jax.evaluation.generation import (
    Example,
    GeneratedBatch,
    GenerationRequest,
    evaluate_generation,
    predictions_path,
)
from dlm_jax.evaluation.json_lines import read_json_lines, write_json_lines
from dlm_jax.evaluation.report import write_report
from dlm_jax.sampling.length_calibration import LengthCalibration

EXAMPLES = [
    Example(
        index=100 + i,
        inputs=f"question {i}",
        targets=f"answer\u2028 {i}",
        prompt_ids=list(range(1 + (7 * i) % 5)),
        target_ids=list(range(1 + i % 3)),
    )
    for i in range(11)
]


class Model:
    """Answers even examples; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def __call__(self, request: GenerationRequest) -> GeneratedBatch:
        self.requests.append(request)
        texts = [f"answer\u2028 {i - 100}" if i % 2 == 0 else "no" for i in request.row_ids]
        scores = [-0.5 if i % 2 == 0 else -math.inf for i in request.row_ids]
        return GeneratedBatch(texts, scores, [10] * len(texts), [5] * len(texts))


def run(tmp_path: Path, **settings):
    model = Model()
    arguments = {
        "task": "family/quiz",
        "step": 30,
        "run_dir": tmp_path,
        "response_length": 6,
        "batch_size": 4,
        "seed": 9,
    } | settings
    figures = evaluate_generation(model, EXAMPLES, [metrics.exact_match], **arguments)
    return model, figures


def test_every_prediction_is_kept_in_order_and_read_back(tmp_path: Path) -> None:
    _, figures = run(tmp_path)
    path = tmp_path / "eval" / "family" / "quiz" / "30.jsonl"
    assert predictions_path(tmp_path, "family/quiz", 30) == path
    records, unreadable = read_json_lines(path)
    assert unreadable == 0
    assert [record["index"] for record in records] == [example.index for example in EXAMPLES]
    assert records[0] == {
        "index": 100,
        "input": "question 0",
        "target": "answer\u2028 0",
        "prediction": "answer\u2028 0",
        "score": -0.5,
        "nfe": 10,
        "seed": 9,
        "split": "validation",
        "canvas": "fixed",
        "canvas_length": 5,
        "metrics": {"exact_match": 1.0},
    }
    assert records[1]["score"] is None
    assert figures["exact_match"] == pytest.approx(6 / 11)
    right = math.fsum(record["metrics"]["exact_match"] for record in records)
    assert figures["exact_match"] == right / figures["n"]
    assert figures["n"] == 11 and figures["nfe"] == 10 and figures["score"] == -0.5
    expected = math.sqrt(6 / 11 * 5 / 11 / 11)
    assert figures["exact_match_se"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_figures_do_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    model, figures = run(tmp_path, batch_size=batch_size)
    assert figures == run(tmp_path, batch_size=4)[1]
    assert {len(request.row_ids) for request in model.requests} == {min(batch_size, 11)}
    asked = {row for request in model.requests for row in request.row_ids}
    assert asked == {example.index for example in EXAMPLES}
    assert all(request.seed == 9 for request in model.requests)


def test_batches_hold_prompts_of_similar_length(tmp_path: Path) -> None:
    model, _ = run(tmp_path)
    lengths = [len(prompt) for request in model.requests for prompt in request.prompts]
    assert lengths == sorted(lengths)


def test_an_oracle_canvas_is_only_ever_called_oracle(tmp_path: Path) -> None:
    model, figures = run(tmp_path, canvas="oracle", response_length=None)
    assert all(name.startswith("oracle_") for name in figures if name != "n")
    lengths = {
        row: length
        for request in model.requests
        for row, length in zip(request.row_ids, request.response_lengths)
    }
    assert lengths == {example.index: len(example.target_ids) for example in EXAMPLES}
    assert [path.name for path in (tmp_path / "eval/family/quiz").iterdir()] == ["30.oracle.jsonl"]
    records, _ = read_json_lines(predictions_path(tmp_path, "family/quiz", 30, "oracle"))
    assert {record["canvas"] for record in records} == {"oracle"}


def test_a_searched_length_is_the_one_of_the_answer(tmp_path: Path) -> None:
    model, figures = run(tmp_path, canvas="search")
    assert figures == run(tmp_path)[1]
    assert {length for request in model.requests for length in request.response_lengths} == {6}
    run(tmp_path, canvas="search")
    records, _ = read_json_lines(tmp_path / "eval/family/quiz/30.jsonl")
    assert {(record["canvas"], record["canvas_length"]) for record in records} == {("search", 5)}


def test_a_predicted_canvas_has_its_own_file_figures_and_lengths(tmp_path: Path) -> None:
    lengths = np.array([len(example.target_ids) for example in EXAMPLES])
    # Right on every example but the first, whose length it takes for 3 instead of 1.
    guesses = np.where(np.arange(len(lengths)) == 0, 3, lengths)
    probabilities = np.full((len(lengths), 4), 0.1)
    probabilities[np.arange(len(lengths)), guesses - 1] = 0.7
    calibration = LengthCalibration(np.log(probabilities), lengths)
    model, figures = run(
        tmp_path, canvas="predicted", length_calibration=calibration, length_beam=1
    )
    asked = {
        row: length
        for request in model.requests
        for row, length in zip(request.row_ids, request.response_lengths)
    }
    assert asked == {example.index: guess for example, guess in zip(EXAMPLES, guesses)}
    assert figures["length_mae"] == pytest.approx(2 / 11)
    assert figures["length_exact"] == figures["length_in_beam"] == pytest.approx(10 / 11)
    assert figures["exact_match"] == run(tmp_path / "other")[1]["exact_match"]
    assert not any(name.startswith("oracle_") for name in figures)
    path = predictions_path(tmp_path, "family/quiz", 30, "predicted")
    assert path.name == "30.predicted.jsonl"
    records, _ = read_json_lines(path)
    assert [record["predicted_length"] for record in records] == guesses.tolist()
    assert [record["true_length"] for record in records] == lengths.tolist()
    assert {record["canvas"] for record in records} == {"predicted"}
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "quiz, predicted length" in page
    assert "quiz: mean error 0.18 tokens, calibration error" in page
    assert (tmp_path / "figures" / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_answers_are_kept_when_a_metric_fails_and_every_split_has_its_file(tmp_path: Path) -> None:
    def broken(targets, predictions):
        raise RuntimeError("no luck")

    with pytest.raises(UserError, match="metric broken fails on 11 answers: RuntimeError: no luck"):
        evaluate_generation(
            Model(), EXAMPLES, [broken], task="quiz", step=3, run_dir=tmp_path, response_length=2
        )
    records, _ = read_json_lines(predictions_path(tmp_path, "quiz", 3))
    assert len(records) == 11 and {record["split"] for record in records} == {"validation"}
    run(tmp_path)
    run(tmp_path, split="test")
    names = {path.name for path in (tmp_path / "eval/family/quiz").iterdir()}
    assert names == {"30.jsonl", "30.test.jsonl"}


def test_one_example_has_no_standard_error(tmp_path: Path) -> None:
    figures = evaluate_generation(
        Model(),
        EXAMPLES[:1],
        [metrics.exact_match],
        task="quiz",
        step=3,
        run_dir=None,
        response_length=2,
    )
    assert figures["exact_match"] == 1.0 and "exact_match_se" not in figures


def test_own_metrics_count_without_intervals_and_names_may_not_clash(tmp_path: Path) -> None:
    def lengths(targets, predictions):
        return {"mean_length": sum(map(len, predictions)) / len(targets)}

    figures = evaluate_generation(
        Model(), EXAMPLES, [lengths], task="t", step=0, run_dir=None, response_length=2
    )
    assert "mean_length" in figures and "mean_length_se" not in figures
    assert not (tmp_path / "eval").exists()
    with pytest.raises(ValueError, match="mean_length"):
        evaluate_generation(
            Model(), EXAMPLES, [lengths, lengths], task="t", step=0, run_dir=None, response_length=2
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"canvas": "oracel"}, "did you mean oracle"),
        ({"response_length": None}, "response_length"),
        ({"response_length": 0}, "response_length"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path: Path, settings, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "eval").exists()


def test_nothing_to_evaluate_and_a_model_that_forgets_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no examples"):
        evaluate_generation(Model(), [], [], task="t", step=0, run_dir=None, response_length=2)
    short = GeneratedBatch(["a"], [0.0], [1])
    with pytest.raises(ValueError, match="answers"):
        evaluate_generation(
            lambda _: short, EXAMPLES, [], task="t", step=0, run_dir=None, response_length=2
        )


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "t" / "1.jsonl"
    write_json_lines(path, [{"a": 1}])
    with pytest.raises(ValueError):
        write_json_lines(path, [{"a": 2}, {"a": math.nan}])
    assert [entry.name for entry in path.parent.iterdir()] == ["1.jsonl"]
    assert read_json_lines(path) == ([{"a": 1}], 0)


def test_a_killed_writer_costs_the_line_it_was_writing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step, "text": "ü"}) + "\n" for step in range(3))
    for cut in range(len(whole.encode()) + 1):
        path.write_bytes(whole.encode()[:cut])
        records, unreadable = read_json_lines(path)
        assert [record["step"] for record in records] == list(range(len(records)))
        assert unreadable <= 1
        assert len(records) + unreadable == len(path.read_bytes().split(b"\n")) - (
            path.read_bytes().endswith(b"\n") or not cut
        )


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("<html>\n<body>\n")
    with pytest.raises(UserError, match="none of its 2 lines"):
        read_json_lines(path)
    with pytest.raises(UserError, match="cannot read"):
        read_json_lines(tmp_path)
