"""Tasks and mixtures of tasks, and the registry that finds them by name.

A task says where its examples come from, how a record reads as `inputs` and `targets`, and which
metrics judge an answer. seqio's own tasks and mixtures are found by the same names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from dlm_jax.data.vocabularies import Vocabulary
from dlm_jax.errors import UserError, nearest

Record = Mapping[str, Any]
Template = str | Callable[[Record], str]
Metric = Callable[[list[str], list[str]], Mapping[str, float]]

_NAME = re.compile(r"[\w.:/+-]+")
_ENCODING_BATCH = 1024


class TextExample(NamedTuple):
    """One example as text; `inputs` is empty for plain text."""

    inputs: str
    targets: str


class Task(Protocol):
    """What the data room asks of a task, ours or seqio's.

    Attributes:
      name: `<dataset>_<version>.<what>`.
      description: one sentence for `dlm tasks`.
      split_names: names of the splits, `train` first by convention.
      metrics: functions of (targets, predictions), each returning named figures.
      evaluation_only: whether training on it would spoil a benchmark.
      plain_text: whether examples have no inputs, so that all of their text is maskable.
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def split_names(self) -> tuple[str, ...]: ...
    @property
    def metrics(self) -> tuple[Metric, ...]: ...
    @property
    def evaluation_only(self) -> bool: ...
    @property
    def plain_text(self) -> bool: ...

    def examples(self, split: str) -> Iterator[TextExample]:
        """Yields the examples of a split as text, in the order of the data set."""
        ...

    def tokenized(
        self, split: str, vocabulary: Vocabulary, *, skip: int = 0
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields (input ids, target ids) without special tokens, in the order of `examples`.

        The first `skip` examples are passed over without being tokenised.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A text-to-text task in a few lines.

    Attributes:
      name: `<dataset>_<version>.<what>`, for example `'reviews_v1.summary'`.
      splits: for each split a function that yields its records; nothing is read before it is used.
      targets: the answer, as a template (`'{summary}'`) or a function of a record.
      inputs: the prompt, likewise; None for a plain-text task.
      metrics: functions of (targets, predictions), each returning named figures.
      evaluation_only: refuse to train on it unless forced.
      description: one sentence for `dlm tasks`.
    """

    name: str
    splits: Mapping[str, Callable[[], Iterable[Record]]]
    targets: Template
    inputs: Template | None = None
    metrics: tuple[Metric, ...] = ()
    evaluation_only: bool = False
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.splits:
            raise UserError(f"Task {self.name} has no splits.")
        for split, read in self.splits.items():
            if not callable(read):
                raise UserError(
                    f"Task {self.name}, split {split}: {type(read).__name__} is no function that "
                    "yields records (lambda: [...] makes one of a list)."
                )

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self.splits)

    @property
    def plain_text(self) -> bool:
        return self.inputs is None

    def examples(self, split: str, *, skip: int = 0) -> Iterator[TextExample]:
        """Yields the examples of a split as text, all but the first `skip`.

        Raises:
          UserError: the split is unknown, a record lacks a key, or a text is empty or not UTF-8.
        """
        check_split(self, split)
        records = itertools.islice(self._records(split), skip, None)
        for number, record in enumerate(records, start=skip):
            where = f"Task {self.name}, split {split}, record {number}"
            inputs = "" if self.inputs is None else _fill(self.inputs, record, "inputs", where)
            targets = _fill(self.targets, record, "targets", where)
            if not targets.strip():
                raise UserError(f"{where}: targets is empty, so there is nothing to learn.")
            yield TextExample(inputs, targets)

    def _records(self, split: str) -> Iterator[Record]:
        where = f"Task {self.name}, split {split}"
        try:
            records = self.splits[split]()
            if not isinstance(records, Iterable):
                raise UserError(
                    f"{where}: its function gives {type(records).__name__}, no records."
                )
            yield from records
        except UserError:
            raise
        except Exception as error:  # Whatever a user's function does.
            kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            raise UserError(f"{where} cannot be read: {kind}{error}.") from error

    def tokenized(
        self, split: str, vocabulary: Vocabulary, *, skip: int = 0
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields (input ids, target ids) without special tokens, in the order of `examples`."""
        for group in _grouped(self.examples(split, skip=skip), _ENCODING_BATCH):
            inputs = vocabulary.encode_batch([example.inputs for example in group])
            targets = vocabulary.encode_batch([example.targets for example in group])
            yield from zip(inputs, targets)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Tasks drawn in proportion to their rates.

    Attributes:
      name: name of the mixture.
      rates: positive rate of each task, by name; they need not sum to 1.
    """

    name: str
    rates: Mapping[str, float]

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.rates:
            raise UserError(f"Mixture {self.name} has no tasks.")
        for task, rate in self.rates.items():
            if not isinstance(rate, int | float) or not 0 < rate < float("inf"):
                raise UserError(f"Mixture {self.name}: the rate of {task} is {rate}, not positive.")

    @property
    def proportions(self) -> dict[str, float]:
        """Share of each task; they sum to 1."""
        total = sum(self.rates.values())
        return {task: rate / total for task, rate in self.rates.items()}


_REGISTRY: dict[str, Task | Mixture] = {}


def register_task(
    name: str,
    *,
    splits: Mapping[str, Callable[[], Iterable[Record]]],
    targets: Template,
    inputs: Template | None = None,
    metrics: Sequence[Metric] = (),
    evaluation_only: bool = False,
    description: str = "",
) -> TextTask:
    """Registers a `TextTask`; its attributes are the arguments.

    Raises:
      UserError: the name is taken or not a name.
    """
    task = TextTask(name, splits, targets, inputs, tuple(metrics), evaluation_only, description)
    _register(task)
    return task


def register_mixture(name: str, rates: Mapping[str, float]) -> Mixture:
    """Registers a mixture of registered tasks; a mixture among them is taken apart.

    Raises:
      UserError: the name is taken, a member is unknown, or a rate is not positive.
    """
    mixture = Mixture(name, rates)
    flat: dict[str, float] = {}
    for member, rate in mixture.rates.items():
        found = get_task(member)
        parts = found.proportions if isinstance(found, Mixture) else {found.name: 1.0}
        for task, share in parts.items():
            flat[task] = flat.get(task, 0.0) + rate * share
    mixture = Mixture(name, flat)
    _register(mixture)
    return mixture


def get_task(name: str) -> Task | Mixture:
    """Returns the task or mixture of that name, from here or from seqio's registries.

    `jsonl:PATH` names the task over a file or folder of JSON lines (see `data.json_lines`).
    seqio is consulted only where something has imported it already.

    Raises:
      UserError: nothing has that name; the nearest one is suggested.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name.startswith("jsonl:"):
        from dlm_jax.data import json_lines

        return json_lines.json_lines_task(name)
    if name in _seqio_names():
        from dlm_jax.data import seqio_tasks

        return seqio_tasks.from_registry(name)
    hint = nearest(name, list_tasks())
    module = _module_of(name)
    where = (
        f"it is in {module}: add --import={module}"
        if module
        else ("modules of tasks are imported with --import")
    )
    raise UserError(f"Unknown task {name!r}{'' if module else hint}; {where}.")


def _module_of(name: str) -> str | None:
    """The shipped module that would register a task of that name; nothing is left registered."""
    kept, loaded = dict(_REGISTRY), set(sys.modules)
    try:
        for module in shipped_modules():
            with contextlib.suppress(UserError):
                _import_module(module)
            if name in _REGISTRY:
                return module
        return None
    finally:
        _REGISTRY.clear()
        _REGISTRY.update(kept)
        for module in set(sys.modules) - loaded:
            if module.startswith("dlm_jax.tasks."):
                del sys.modules[module]


def list_tasks() -> list[str]:
    """Returns the names of all registered tasks and mixtures, sorted."""
    return sorted({*_REGISTRY, *_seqio_names()})


def members(
    task: str | Task | Mixture | Mapping[str, float],
) -> tuple[str, list[tuple[Task, float]]]:
    """Resolves what a loader is asked to read.

    Args:
      task: a name, a task, a mixture, or rates by name.

    Returns:
      A name, and the tasks in order with their shares, which sum to 1.

    Raises:
      UserError: a name is unknown or a rate is not positive.
    """
    if isinstance(task, str):
        task = get_task(task)
    if isinstance(task, Mapping):
        task = Mixture("+".join(task) or "mixture", dict(task))
    if not isinstance(task, Mixture):
        return task.name, [(task, 1.0)]
    resolved = []
    for name, share in task.proportions.items():
        member = get_task(name)
        if isinstance(member, Mixture):
            raise UserError(f"Mixture {task.name} holds the mixture {name}; register it first.")
        resolved.append((member, share))
    return task.name, resolved


def check_split(task: Task, split: str) -> None:
    """Raises a UserError that names the nearest split when `task` has no split `split`."""
    if split not in task.split_names:
        raise UserError(
            f"Task {task.name} has no split {split!r}{nearest(split, task.split_names)}; "
            f"it has {', '.join(task.split_names)}."
        )


def check_name(name: str) -> None:
    """Raises a UserError unless `name` is made of letters, digits and `_.:/+-`."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a name for a task: use letters, digits and _ . : / + -")


def import_task_modules(names: Iterable[str]) -> list[ModuleType]:
    """Imports modules that register tasks.

    Args:
      names: modules of this package's tasks (`multi30k`), other dotted names, found also in the
        current folder (`my_tasks`), or paths that end in `.py`.

    Raises:
      UserError: a module is not found or fails while it is imported.
    """
    return [_import_module(name) for name in names]


def _import_module(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _import_file(Path(name))
        return _import_dotted(name)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"Task module {name} fails while it is imported ({reason}).") from error


def _import_dotted(name: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # An installed command does not look into the folder it is called from.
        sys.path.insert(0, here)
    try:
        for candidate in (f"dlm_jax.tasks.{name}", name):
            try:
                module = importlib.import_module(candidate)
            except ModuleNotFoundError as error:
                # Only the module itself may be missing; what it imports in turn must be there.
                if not error.name or not f"{candidate}.".startswith(f"{error.name}."):
                    raise
            else:
                if getattr(module, "__file__", None) or hasattr(module, "__path__"):
                    return module
        raise UserError(f"Task module {name!r} is not found{nearest(name, shipped_modules())}.")
    finally:
        if added:
            sys.path.remove(here)


def _import_file(file: Path) -> ModuleType:
    name = f"dlm_task_file_{file.resolve().as_posix()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise UserError(f"Task module {file} is not a file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def shipped_modules() -> list[str]:
    """Names of the task modules of this package; none of them is imported."""
    spec = importlib.util.find_spec("dlm_jax.tasks")
    folders = spec.submodule_search_locations if spec else None
    return [file.stem for folder in folders or () for file in Path(folder).glob("[!_]*.py")]


def _register(entry: Task | Mixture) -> None:
    if entry.name in _REGISTRY:
        raise UserError(f"Task {entry.name!r} is registered twice; give one of them another name.")
    _REGISTRY[entry.name] = entry


def _seqio_names() -> set[str]:
    seqio = sys.modules.get("seqio")
    if seqio is None:
        return set()
    return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def _fill(template: Template, record: Record, part: str, where: str) -> str:
    try:
        text = template.format_map(record) if isinstance(template, str) else template(record)
    except KeyError as error:
        key = str(error.args[0])
        raise UserError(
            f"{where} lacks the key {key!r} that {part} uses{nearest(key, map(str, record))}."
        ) from error
    except Exception as error:  # Whatever a user's function does.
        raise UserError(
            f"{where}: {part} cannot be made of it ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(text, str):
        raise UserError(f"{where}: {part} is {type(text).__name__}, not text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {part} is not valid UTF-8 text.") from error
    return text


def _grouped(items: Iterator[TextExample], size: int) -> Iterator[list[TextExample]]:
    group: list[TextExample] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
