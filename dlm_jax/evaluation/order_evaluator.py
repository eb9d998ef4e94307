"""An evaluator of the order in which a sampler writes worked answers, as a value for gin files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from dlm_jax.api import DiffusionLanguageModel
from dlm_jax.checkpoints.run_folder import ModelDescription, RunFolder
from dlm_jax.data.tasks import Task
from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError, nearest
from dlm_jax.evaluation.answers import Answer
from dlm_jax.evaluation.dependency_graph import REVEALS, DependencyGraph
from dlm_jax.evaluation.evaluators import GenerationEvaluator, chosen_tasks
from dlm_jax.evaluation.generation import (
    Example,
    GeneratedBatch,
    GenerateFunction,
    GenerationRequest,
    predictions_path,
)
from dlm_jax.evaluation.metrics import statistics
from dlm_jax.evaluation.reasoning_order import (
    OrderOfAnswer,
    RevealedText,
    order_figures,
    order_of,
    record_of,
    reveal_text,
)
from dlm_jax.evaluation.run_records import VERDICTS
from dlm_jax.models.encoder import Encoder
from dlm_jax.parallel import multihost
from dlm_jax.sampling.trace import Trace, reveal_steps
from dlm_jax.sampling.trace_page import trace_html

NAME = "reasoning_order"
_TRACED_OF_EACH_KIND = 2


@dataclasses.dataclass(frozen=True)
class ReasoningOrderEvaluator(GenerationEvaluator):
    """Answers held-out word problems and tells whether each is written in the order of reasoning.

    Tasks must know the graph of their answers (`Answer.graph`), as `arithmetic_v1` does; members of
    a mixture that do not are passed over. Each answer is decoded as `GenerationEvaluator` would,
    and traced.

    Attributes:
        reveal: 'last' or 'first': the token of a span with whose writing the span appears.
    """

    steps: int = 50
    reveal: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mbr != 1:
            raise UserError(
                f"ReasoningOrderEvaluator.mbr is {self.mbr}, and must be 1: one answer is traced"
            )
        if self.reveal not in REVEALS:
            raise UserError(
                f"ReasoningOrderEvaluator.reveal is {self.reveal!r}, none of "
                f"{', '.join(REVEALS)}{nearest(self.reveal, REVEALS)}"
            )

    def __call__(
        self,
        denoiser: Encoder,
        vocabulary: Vocabulary,
        description: ModelDescription,
        folder: RunFolder,
        step: int,
    ) -> dict[str, dict[str, float]]:
        """Returns {'eval/<task>/reasoning_order': figures of the task and of `order_figures`}.

        It writes `eval/<task>/reasoning_order/<step>.jsonl`, whose lines hold the step at which
        each span and each token appeared, and beside it a page with the trace of some answers.

        Raises:
            UserError: no task knows the graph of its answers.
        """
        model = DiffusionLanguageModel(denoiser, vocabulary, description, folder)
        tasks = chosen_tasks(self.task, description)
        graded = [task for task in tasks if self._knows_graphs(task)]
        if not graded:
            raise UserError(
                f"the answers of {', '.join(task.name for task in tasks)} carry no graph of what "
                "builds on what: the order of reasoning is known for tasks such as arithmetic_v1"
            )
        results = {}
        evaluator = self.resolved(denoiser.config)
        for task in graded:
            name = f"{task.name}/{NAME}"
            watcher = _Watcher(model, evaluator, task)
            figures = evaluator.measure(model, task, folder, step, name=name, watch=watcher.watch)
            watcher.share()
            prefix = "oracle_" if evaluator.canvas == "oracle" else ""
            judged = {f"{prefix}{key}": value for key, value in watcher.figures().items()}
            results[f"eval/{name}"] = {**figures, **judged}
            if multihost.is_main():
                path = predictions_path(folder.path, name, step, evaluator.canvas, self.split)
                page = path.with_suffix(".html").name
                RunFolder(path.parent).write_text(page, watcher.page())
        return results

    def measures(self, description: ModelDescription) -> list[str]:
        """The order of its answers to each task."""
        return [f"order of {what}" for what in super().measures(description)]

    def _knows_graphs(self, task: Task) -> bool:
        if task.plain_text:
            return False
        first = next(task.examples(self.split), None)
        return first is not None and _graph(first.targets) is not None


def _graph(target: str | Sequence[str]) -> DependencyGraph | None:
    return target.graph if isinstance(target, Answer) else None


class _Watcher:
    """Traces the answers of a task and keeps their orders.

    Of several processes each traces those that it gives; the first batch is of process 0.
    """

    def __init__(
        self, model: DiffusionLanguageModel, evaluator: ReasoningOrderEvaluator, task: Task
    ) -> None:
        self._model, self._evaluator, self._task = model, evaluator, task
        self._examples: dict[int, Example] = {}
        self._answers: dict[int, tuple[RevealedText, OrderOfAnswer | None]] = {}
        self._traced: tuple[Trace, Sequence[int]] | None = None

    def watch(self, generate: GenerateFunction, examples: Sequence[Example]) -> GenerateFunction:
        """Wraps `generate`; the answers are the same."""
        self._examples = {example.index: example for example in examples}

        def traced(request: GenerationRequest) -> GeneratedBatch:
            chosen = generate(request)
            answers = self._model.generate_ids(
                request.prompts,
                chosen.lengths or request.response_lengths,
                trace=True,
                batch_size=len(request.prompts),
                **self._evaluator.decoding(request),
            )
            trace = self._model.trace
            if trace is None:
                raise ValueError("no trace was kept")
            self._traced = self._traced or (trace, request.row_ids)
            revealed = self._revealed(trace, len(request.prompts))
            notes = [self._judge(row, text) for row, text in zip(request.row_ids, revealed)]
            return GeneratedBatch(
                texts=[text.text for text in revealed],
                scores=[answer.score for answer in answers],
                nfe=chosen.nfe,
                lengths=[answer.length for answer in answers],
                notes=notes,
            )

        return traced

    def _revealed(self, trace: Trace, rows: int) -> list[RevealedText]:
        taken = int(trace.steps_taken)
        final, editable = np.asarray(trace.tokens[taken - 1]), np.asarray(trace.editable)
        steps = reveal_steps(trace)
        return [
            reveal_text(
                self._model.vocabulary,
                final[row][editable[row]].tolist(),
                steps[row][editable[row]].tolist(),
                taken,
            )
            for row in range(rows)
        ]

    def _judge(self, row: int, revealed: RevealedText) -> dict[str, object]:
        graph = _graph(self._examples[row].targets)
        order = None if graph is None else order_of(revealed, graph, self._evaluator.reveal)
        self._answers[row] = (revealed, order)
        return record_of(revealed, order)

    def share(self) -> None:
        """Takes over the answers that were watched on other processes; all must call it."""
        own = [[row, *dataclasses.astuple(text)] for row, (text, _) in self._answers.items()]
        for others in multihost.exchange("orders", json.dumps(own)):
            for row, text, pieces, drawn in json.loads(others):
                if row not in self._answers:
                    places = [(begin, end, step) for begin, end, step in pieces]
                    self._judge(row, RevealedText(text, places, tuple(drawn)))

    def figures(self) -> dict[str, float]:
        """Figures of `order_figures`, over the answers of all processes."""
        rows = list(self._examples)
        return order_figures([self._answers[row][1] for row in rows], self._right(rows))

    def _right(self, rows: Sequence[int]) -> list[bool] | None:
        """Verdicts of the first metric that says of one answer whether it is right."""
        targets = [self._examples[row].targets for row in rows]
        texts = [self._answers[row][0].text for row in rows]
        for metric in self._task.metrics:
            for name, measured in (statistics(metric, targets, texts) or {}).items():
                if name in VERDICTS:
                    return [bool(value == 1.0) for value in measured.per_example[:, 0]]
        return None

    def page(self) -> str:
        """A page with the traces of some answers in order and of some that are not."""
        if self._traced is None:
            raise ValueError("nothing was answered")
        trace, row_ids = self._traced
        kinds: dict[str, list[int]] = {}
        for row, identity in enumerate(row_ids):
            order = self._answers[identity][1]
            kind = "not of the form" if order is None else "out of order"
            kind = "in order" if order is not None and order.topological else kind
            seen = kinds.setdefault(kind, [])
            if len(seen) < _TRACED_OF_EACH_KIND and identity not in [row_ids[i] for i in seen]:
                seen.append(row)
        shown = [(kind, row) for kind, rows in kinds.items() for row in rows]
        return trace_html(
            trace,
            self._model.vocabulary.piece,
            rows=[row for _, row in shown],
            row_titles=[f"{kind}: {self._examples[row_ids[row]].inputs}" for kind, row in shown],
            title=f"How answers of {self._task.name} were written",
        )
