from __future__ import annotations

import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dlm_jax.errors import UserError
from dlm_jax.evaluation import figures, html_parts, run_records
from dlm_jax.evaluation.evaluators import LikelihoodEvaluator
from dlm_jax.evaluation.json_lines import write_json_lines
from dlm_jax.evaluation.report import write_report
from dlm_jax.evaluation.run_records import (
    QUANTITIES,
    read_stage,
    series,
    stage_folders,
)
from dlm_jax.training.evaluators import recorded

STAGES = ("warmup", "adapt", "finetune")
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def written(finished_run: Path) -> Path:
    return write_report(finished_run, {name: finished_run / name for name in STAGES})


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def test_the_page_loads_nothing(written: Path, page: Page) -> None:
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "img", "object", "embed", "base"}
    for name in ("src", "href", "xlink:href", "action", "poster"):
        assert all(value.startswith("#") for value in page.values(name))
    text = written.read_text(encoding="utf-8")
    assert "@import" not in text
    # The only address is one that the configuration mentions, as text.
    assert re.findall(r"https?://[^\s<\"]*", text) == ["http://example.org/a?b&amp;c"]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_and_references_meet_one(written: Path, page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    text = written.read_text(encoding="utf-8")
    wanted = {value[1:] for value in page.values("href")}
    wanted |= {target[1:] for target in re.findall(r"url\(([^)]*)\)", text)}
    assert wanted and wanted <= set(ids)


def themes(text: str) -> list[str]:
    """The variables of the light and of the dark theme."""
    style = text[text.index("<style>") : text.index("</style>")]
    found = re.findall(r":root\{([^}]*)\}", style)
    assert len(found) == 2
    return found


def test_every_colour_follows_the_theme(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    for theme in themes(text):
        assert used <= set(re.findall(r"(--[\w-]+):", theme))
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert drawings
    for drawing in drawings:
        assert set(re.findall(r"(?:fill|stroke): ?(#\w+)", drawing)) == set()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(written: Path, theme: str) -> None:
    """Contrast of WCAG 2.1: 4.5 for text, 3 for lines and marks of a figure."""
    variables = themes(written.read_text(encoding="utf-8"))[theme == "dark"]
    colors = dict(re.findall(r"(--[\w-]+):(#\w{6})", variables))

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(first: str, second: str) -> float:
        high, low = sorted((luminance(colors[first]), luminance(colors[second])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ground in ("--paper", "--ground"):
        for ink in ("--ink", "--muted", "--right", "--wrong"):
            assert contrast(ink, ground) >= 4.5
    for name in colors:
        if name.startswith("--series"):
            assert contrast(name, "--paper") >= 3.0


def test_png_files_are_the_figures_of_the_page(written: Path, page: Page) -> None:
    from PIL import Image

    files = sorted((written.parent / "figures").glob("*.png"))
    assert [file.stem for file in files] == [
        "confidence",
        "evaluation_2_adapt",
        "evaluation_3_finetune",
        "results",
        "training_1_warmup",
        "training_2_adapt",
        "training_3_finetune",
    ]
    assert sum(tag == "svg" and name == "viewbox" for tag, name, _ in page.attributes) == len(files)
    for file in files:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 300
            assert len(set(image.convert("RGB").resize((64, 64)).getdata())) > 10
    labels = page.values("aria-label")
    assert len(labels) == len(files) and all(labels)


def test_the_table_says_what_was_measured(finished_run: Path, page: Page) -> None:
    rows = {(row[0], row[1], row[2]): row[3:] for row in page.rows if row[0] in STAGES}
    nelbo = rows["adapt", "prose", "NELBO [nats/token]"]
    assert nelbo == ["7.900 ± 0.050", "0", "4.000 ± 0.050", "3.902 to 4.098", "900", "256"]
    lines = read_stage(finished_run / "finetune").evaluations("word_reversal")
    expected = html_parts.format_value(lines[-1]["exact_match"], lines[-1]["exact_match_se"])
    match = rows["finetune", "word_reversal", "exact match [fraction]"]
    low, high = (lines[-1][f"exact_match_{end}"] for end in ("low", "high"))
    assert low < lines[-1]["exact_match"] < high
    assert match[2:] == [expected, f"{low:.3f} to {high:.3f}", "1,500", "120"]
    text = "".join(page.text)
    for words in ("0.925 ± 0.024", "before 0.000 · n = 120", "9 min 43 s", "4.000 ± 0.050"):
        assert words in text
    assert "exact_match|case:mixed" in text


def test_predictions_are_shown_as_text_with_their_verdict(finished_run: Path, page: Page) -> None:
    rows = [row for row in page.rows if row[0] in ("✓ right", "✗ wrong")]
    records = {
        (json.loads(line)["input"], json.loads(line)["prediction"])
        for task in ("word_reversal", "letter_count")
        for line in (finished_run / "finetune/eval" / task / "1500.jsonl").read_text().splitlines()
    }
    assert len(rows) >= 16
    for mark, given, target, prediction, _, nfe in rows:
        assert (given, prediction) in records and "<b>&gamma</b>" in given
        assert (mark == "✓ right") == (target == prediction)
        assert nfe == "10"


def test_trace_and_configuration_are_embedded(finished_run: Path, page: Page) -> None:
    stage = finished_run / "finetune"
    assert page.values("srcdoc") == [(stage / "trace.html").read_text()]
    assert page.values("sandbox") == ["allow-scripts"]
    text = "".join(page.text)
    assert (stage / "config.gin").read_text() in text
    assert (stage / "model_info.txt").read_text() in text


def test_the_same_run_gives_the_same_bytes(finished_run: Path) -> None:
    first, second = (
        figures.draw([read_stage(finished_run / "adapt")])[0],
        figures.draw([read_stage(finished_run / "adapt")])[0],
    )
    assert first == second


def test_a_killed_run_is_reported_up_to_its_last_whole_line(
    finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapt"
    shutil.copytree(finished_run / "adapt", folder)
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-25])
    stage = read_stage(folder)
    assert stage.unreadable == 1
    assert series(stage.evaluations("prose"), "nelbo").values == [7.9, 5.1, 4.3]
    text = "".join(Page(write_report(folder).read_text(encoding="utf-8")).text)
    assert "1 line(s) were cut short" in text and "adapt (900 steps)" in text


def test_a_step_written_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    lines = [{"step": s, "split": "train", "loss": float(s)} for s in (1, 2, 3)]
    lines += [{"step": s, "split": "train", "loss": 10.0 * s} for s in (3, 4)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "loss": NaN}\n')
    curve = series(read_stage(tmp_path).splits["train"], "loss")
    assert (curve.steps, curve.values) == ([1, 2, 3, 4], [1.0, 2.0, 30.0, 40.0])


def test_figures_of_other_examples_never_stand_in_one_line(tmp_path: Path) -> None:
    name, test = "eval/toy_v1.echo", "eval/toy_v1.echo@test"
    sure = {"exact_match_se": 0.1, "exact_match_low": 0.3, "exact_match_high": 0.7}
    lines = [
        {"step": 4, "split": name, "n": 9, "nelbo": 2.0, "nelbo_se": 0.5},
        {"step": 4, "split": name, "n": 9, "exact_match": 0.5, **sure},  # joins those above
        {"step": 4, "split": test, "n": 5, "exact_match": 0.4, **sure},
        {"step": 8, "split": name, "n": 9, "exact_match": 0.5, "nelbo": 1.5, **sure},
        {"step": 8, "split": name, "n": 1, "exact_match": 1.0},  # of other examples
        {"step": 12, "split": name, "n": 9, "exact_match": 0.5, "nelbo": 1.5, **sure},
        {"step": 12, "split": name, "n": 9, "exact_match": 0.6},  # without the interval of 0.5
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    predictions = tmp_path / "eval" / "toy_v1.echo" / "12.test.jsonl"
    write_json_lines(predictions, [{"split": "test", "canvas": "search", "metrics": {"a": 1.0}}])
    stage = read_stage(tmp_path)
    first, second, third = stage.evaluations("toy_v1.echo")
    assert first == {**lines[0], **lines[1]}
    assert second == lines[4]
    assert third == {"step": 12, "split": name, "n": 9, "exact_match": 0.6, "nelbo": 1.5}
    assert [line["step"] for line in stage.evaluations("toy_v1.echo@test")] == [4, 12]
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert {row[1] for row in page.rows if len(row) == 9} == {
        "Task",
        "toy_v1.echo",
        "toy_v1.echo@test",
    }


def test_a_run_keeps_figures_of_other_examples_by_another_name() -> None:
    found = {"eval/a_v1.b": {"n": 3.0}}
    assert recorded(LikelihoodEvaluator(), found) == found
    assert recorded(LikelihoodEvaluator(split="test"), found) == {"eval/a_v1.b@test": {"n": 3.0}}


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    text = "".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).text)
    assert "has written neither metrics nor predictions yet" in text
    assert not (tmp_path / "figures").exists()


def test_predictions_alone_make_a_report(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run / "finetune" / "eval", tmp_path / "eval")
    ours = read_stage(tmp_path).evaluations("word_reversal")[-1]
    logged = read_stage(finished_run / "finetune").evaluations("word_reversal")[-1]
    assert ours["exact_match"] == pytest.approx(logged["exact_match"])
    assert ours["exact_match_se"] == pytest.approx(logged["exact_match_se"], rel=0.15)
    text = "".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).text)
    assert "has no training metrics" in text and "word_reversal" in text


def test_an_oracle_evaluation_keeps_its_name(tmp_path: Path, evaluate_task) -> None:
    evaluate_task(tmp_path, "task", 5, 0.5, canvas="oracle")
    rows = Page(write_report(tmp_path).read_text(encoding="utf-8")).rows
    names = {row[2] for row in rows if len(row) == 9 and row[1] == "task"}
    assert names == {"exact match, oracle length [fraction]", "token F1, oracle length [fraction]"}


def benchmark_lines() -> list[dict[str, object]]:
    """Two evaluations of a task by subject, and one of each of 27 tasks of a family."""
    lines: list[dict[str, object]] = []
    for step in (0, 10):
        subjects = {
            f"option_accuracy/subject {n:02}": 0.2 + 0.01 * n + 0.02 * step for n in range(57)
        }
        micro = {"option_accuracy": 0.25 + 0.02 * step, "option_accuracy_se": 0.01}
        micro |= {"option_accuracy_low": 0.2, "option_accuracy_high": 0.5}
        macro = {"option_accuracy_macro": 0.48 + 0.02 * step, "option_accuracy_macro_se": 0.02}
        line = {"step": step, "split": "eval/mmlu_v1.all", "n": 1531, **subjects, **micro, **macro}
        lines.append(line)
    for n in range(27):
        line = {"step": 10, "split": f"eval/bbh_v1.task_{n:02}", "n": 250}
        lines.append(line | {"exact_match": n / 27, "exact_match_se": 0.03, "nfe": 1.0})
    shots = {"step": 10, "split": "eval/bbh_v1.task_00_3_shot", "n": 250, "exact_match": 1.0}
    return [*lines, shots]


def test_families_have_a_mean_and_parts_a_table_of_their_own(tmp_path: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in benchmark_lines())
    (tmp_path / "metrics.jsonl").write_text(text)
    written = write_report(tmp_path).read_text(encoding="utf-8")
    found = {(row[1], row[2]): row[3:] for row in Page(written).rows if len(row) == 9}
    mean = found["bbh_v1, mean of 27 tasks", "exact match [fraction]"]
    # 0.03/√27 is the error of a mean of 27 independent figures; 250 questions each.
    error = 0.03 / math.sqrt(27)
    value = 13 / 27
    ends = f"{value - 1.96 * error:.4f} to {value + 1.96 * error:.4f}"
    assert mean == ["–", "–", f"{value:.4f} ± {error:.4f}", ends, "10", "6,750"]
    # The means of other figures say nothing, and another number of demonstrations is no member.
    assert not any(task.startswith("bbh_v1, mean") and "exact" not in name for task, name in found)
    assert found["bbh_v1.task_00_3_shot", "exact match [fraction]"][2] == "1.00"
    assert found["bbh_v1.task_26", "exact match [fraction]"][2] == "0.963 ± 0.030"
    micro = found["mmlu_v1.all", "accuracy of options [fraction]"]
    assert micro == ["0.250 ± 0.010", "0", "0.450 ± 0.010", "0.200 to 0.500", "10", "1,531"]
    macro = found["mmlu_v1.all", "accuracy of options, mean over groups [fraction]"]
    assert macro[2:4] == ["0.680 ± 0.020", "0.641 to 0.719"]
    assert found["subject 56", "accuracy of options [fraction]"][:3] == ["0.760", "0", "0.960"]
    folded = re.findall(r"<details( open)?><summary>([^<]*)</summary>", written)
    assert ("", f"{tmp_path.name}: 27 tasks of bbh_v1") in folded
    assert ("", f"{tmp_path.name}: accuracy of options of mmlu_v1.all in 57 parts") in folded
    assert [file.name for file in (tmp_path / "figures").glob("parts*")] == [
        "parts_1_mmlu_v1_all.png"
    ]


def test_a_mean_of_tasks_is_no_more_certain_than_they_are(tmp_path: Path) -> None:
    wilson = {"exact_match": 0.0, "exact_match_se": 0.0, "exact_match_low": 0.0}
    lines = [
        {"step": 1, "split": f"eval/a_v1.{name}", "n": 200, **wilson, "exact_match_high": 0.02}
        for name in "bcde"
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    [row] = [row for row in page.rows if len(row) == 9 and "mean of" in row[1]]
    assert row[6] == "0.000 to 0.010"  # 0.02 / sqrt(4)


def test_the_legend_names_what_any_panel_shows(tmp_path: Path) -> None:
    lines = [
        {"step": 2, "split": "eval/a_v1.b", "n": 9, "exact_match": 0.5, "exact_match_se": 0.1},
        {"step": 1, "split": "eval/a_v1.c", "n": 9, "nelbo": 2.0, "nelbo_se": 0.1},
        {"step": 2, "split": "eval/a_v1.c", "n": 9, "nelbo": 1.0, "nelbo_se": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = figures.results_figure([run_records.read_stage(tmp_path)])
    svg = drawn.svg
    assert svg.count("first evaluation") == svg.count("last evaluation") == 1


def test_demonstrations_in_english_are_a_family_of_their_own(tmp_path: Path) -> None:
    shares = {
        "de_3_shot": 0.1,
        "fr_3_shot": 0.3,
        "de_english_3_shot": 0.5,
        "fr_english_3_shot": 0.9,
    }
    lines = [
        {"step": 1, "split": f"eval/mgsm_v1.{name}@test", "n": 250, "numeric_answer": share}
        for name, share in shares.items()
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    means = {row[1]: row[5] for row in page.rows if len(row) == 9 and "mean of" in row[1]}
    assert means == {
        "mgsm_v1_3_shot@test, mean of 2 tasks": "0.200",
        "mgsm_v1_english_3_shot@test, mean of 2 tasks": "0.700",
    }


def test_the_latest_trace_of_each_task_is_embedded(tmp_path: Path) -> None:
    folder = tmp_path / "eval/arithmetic_v1.two_steps/reasoning_order"
    folder.mkdir(parents=True)
    for name in ("9.html", "10.html", "draft.html"):
        (folder / name).write_text(f"<p>{name}</p>")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.values("srcdoc") == ["<p>10.html</p>"]


def test_stages_are_found(finished_run: Path) -> None:
    assert list(stage_folders(finished_run)) == sorted(STAGES)
    assert list(stage_folders(finished_run / "adapt").values()) == [finished_run / "adapt"]


def test_what_is_no_run_is_one_sentence(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean adapt"):
        write_report(finished_run / "adpat")
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(UserError, match="summary.json does not hold a JSON object"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="summary.json is not JSON"):
        write_report(tmp_path)


def test_hostile_names_and_values_stay_text(tmp_path: Path) -> None:
    name = '$x_1$ <script>alert("1")</script> ' + "long " * 20
    lines = [
        {"step": step, "split": f"eval/{name}", "exact_match": 0.1 * step, "<b>": 1e9, "n": "many"}
        for step in (1, 2)
    ]
    lines += [{"step": 1, "split": "train", "loss": "text"}, {"loss": 1.0}, {"step": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Page(write_report(tmp_path, title="<i>").read_text(encoding="utf-8"))
    assert not {tag for tag, _, _ in found.attributes} & {"script", "b", "i"}
    assert name in {row[1] for row in found.rows if len(row) > 1}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.925, 0.024, "0.925 ± 0.024"),
        (0.5, 0.0, "0.500 ± 0.000"),
        (34.1049, 0.512, "34.10 ± 0.51"),
        (1234.5, 31.0, "1,234 ± 31"),
        (2.345678, float("nan"), "2.35"),
        (float("nan"), 0.1, "–"),
        (0.00001, float("nan"), "0.000"),
        (5.0, 1e-9, "5.0000 ± 0.0000"),
    ],
)
def test_values_have_the_digits_of_their_error(value: float, error: float, text: str) -> None:
    assert html_parts.format_value(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1500, "1.5k"), (2e6, "2M"), (3e-4, "3e-4"), (0.25, "0.25"), (-1e9, "-1B")],
)
def test_tick_labels(value: float, text: str) -> None:
    assert figures.tick_text(value) == text


def test_every_metric_of_the_room_has_a_label_and_a_unit_of_its_scale() -> None:
    from dlm_jax.evaluation import metrics

    texts = ["one 1", "two words 2"]
    for metric in (
        metrics.bleu,
        metrics.rouge,
        metrics.exact_match,
        metrics.token_f1,
        metrics.numeric_answer,
    ):
        for name, value in metric(texts, texts).items():
            upper = QUANTITIES[name].upper
            assert upper is not None and value <= upper
            # Texts of fewer than four words have no 4-gram to match.
            assert value == pytest.approx(upper) or name.startswith("bleu") or name == "rouge2"


def test_matplotlib_is_imported_in_one_place() -> None:
    room = Path(figures.__file__).parent
    users = {path.name for path in room.glob("*.py") if "import matplotlib" in path.read_text()}
    users |= {path.name for path in room.glob("*.py") if "from matplotlib" in path.read_text()}
    assert users == {"figures.py"}


@pytest.mark.parametrize("value", [10**400, 1e308, float("inf"), True, "3", None])
def test_what_no_axis_can_show_is_no_number(value) -> None:
    assert math.isnan(run_records.number(value))


def test_half_a_surrogate_pair_in_an_answer_is_shown_as_a_question_mark(tmp_path) -> None:
    folder = tmp_path / "eval" / "toy_v1.echo"
    folder.mkdir(parents=True)
    record = {"index": 0, "input": "a", "target": "b", "prediction": "\ud800!", "canvas": "fixed"}
    (folder / "3.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    (folder / "\u00b22.jsonl").write_text("{}\n", encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<div>?!</div>" in page
