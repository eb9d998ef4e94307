"""Instructions of reasoning-gym for one question: do tasks that were never trained on profit from
more tasks that were?

Mixtures of 1, 2, 4 and 8 tasks, those of a smaller one among those of a larger one, and four tasks
that none of them holds. Every task comes without demonstrations and with two (`…_2_shot`), half and
half in the mixtures.
"""

from __future__ import annotations

from typing import Any

from dlm_jax.tasks.reasoning_gym import register_reasoning

from dlm_jax.data.few_shot import few_shot_prompt, with_demonstrations
from dlm_jax.data.tasks import TextTask, get_task, register_mixture, register_task
from dlm_jax.evaluation.metrics import exact_match

SHOTS = 2
MIXTURES = (1, 2, 4, 8)

# In the order in which the mixtures take them: new forms of answers first.
TRAINED = (
    "reasoning_gym_v1.gcd",
    "reasoning_gym_v1.word_reversal",
    "reasoning_gym_v1.letter_counting",
    "reasoning_gym_v1.syllogism",
    "instructions_v1.isomorphic_strings",
    "reasoning_gym_v1.needle_haystack",
    "reasoning_gym_v1.family_relationships",
    "reasoning_gym_v1.addition",
)
HELD_OUT = (
    "instructions_v1.ransom_note",
    "instructions_v1.count_bits",
    "instructions_v1.friends",
    "instructions_v1.color_cube",
)

# Data set of the package, its settings, and what a reader should know.
_NEW: dict[str, tuple[str, dict[str, Any], str]] = {
    "isomorphic_strings": (
        "isomorphic_strings",
        {"min_string_length": 2, "max_string_length": 4},
        "Can letters be replaced to turn one string into the other? true or false.",
    ),
    "ransom_note": (
        "ransom_note",
        {
            "min_note_length": 1,
            "max_note_length": 4,
            "min_magazine_length": 2,
            "max_magazine_length": 8,
        },
        "Does a magazine have the letters of a note? true or false.",
    ),
    "count_bits": ("count_bits", {"max_n": 1000}, "One bits of a number up to 1000."),
    "friends": ("aiw", {}, "How many friends, siblings or colleagues has another one of them?"),
    "color_cube": ("color_cube_rotation", {}, "The colour of a side of a cube that was turned."),
}


def _with_shots(task: TextTask) -> str:
    """Registers the task with demonstrations of its training split, and returns its name."""
    name = f"instructions_v1.{task.name.partition('.')[2]}_{SHOTS}_shot"
    register_task(
        name,
        splits=with_demonstrations(task.splits, task.splits["train"], SHOTS, identity="{question}"),
        inputs=few_shot_prompt("{question}", " {answer}", separator=" "),
        targets="{answer}",
        metrics=(exact_match,),
        description=f"{task.name} after {SHOTS} demonstrations.",
    )
    return name


for _name, (_dataset, _config, _description) in _NEW.items():
    register_reasoning(
        f"instructions_v1.{_name}", _dataset, _config, _description, train_examples=5000
    )

_SHOT_NAMES: dict[str, str] = {}
for _name in (*TRAINED, *HELD_OUT):
    _task = get_task(_name)
    assert isinstance(_task, TextTask)
    _SHOT_NAMES[_name] = _with_shots(_task)
for _count in MIXTURES:
    register_mixture(
        f"instructions_v1.trained_{_count}",
        {member: 1.0 for name in TRAINED[:_count] for member in (name, _SHOT_NAMES[name])},
    )
HELD_OUT_2_SHOT = tuple(_SHOT_NAMES[name] for name in HELD_OUT)
