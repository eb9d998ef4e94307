"""`dlm <verb>`: finds the verb, turns mistakes into one sentence, and sets the exit code.

Nothing but the standard library is imported before a verb is known; each verb is a module of its
own with `add_arguments(parser)` and `run(arguments)`.

Exit codes: 0 done, 1 the run failed, 2 a wrong flag, config, task or checkpoint (retrying is
useless), 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

from dlm_jax.errors import UserError, nearest

VERBS = {
    "train": ("train", "adapt, finetune or pretrain a model, as gin files say"),
    "eval": ("evaluate", "measure a run by likelihood and by its answers"),
    "sample": ("sample", "answer prompts, or fill gaps in a text"),
    "tasks": ("tasks", "list tasks, or show examples of one as the model gets them"),
    "import": ("import_model", "turn pretrained weights into a run folder"),
    "export": ("export_model", "turn a run into a Hugging Face folder"),
    "inspect": ("inspect_model", "print what a run, a checkpoint or a Hugging Face folder is"),
    "report": ("report", "write report.html and its figures from what a run has recorded"),
    "quickstart": ("quickstart", "do all of it once, on real weights and text, in minutes"),
}

_HELP = """usage: dlm VERB [flags]

Turn masked language models into diffusion language models.

{verbs}

`dlm VERB --help` lists the flags of a verb; `dlm --version` prints the version.
With --debug, a mistake in flags or gin files is shown with its traceback as well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments after the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"dlm: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough; Python must not complain at exit as well.
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except Exception as error:
        traceback.print_exc()
        print(f"dlm: failed: {type(error).__name__}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    verb = next((item for item in arguments if item != "--debug"), "--help")
    if verb in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        lines = (f"  {name:<{width}}  {text}" for name, (_, text) in VERBS.items())
        print(_HELP.format(verbs="\n".join(lines)))
        return
    if verb == "--version":
        from importlib.metadata import version

        print(f"dlm_jax {version('dlm_jax')}")
        return
    if verb not in VERBS:
        kind = "a flag before any verb" if verb.startswith("-") else "no verb"
        hint = nearest(verb, VERBS)
        raise UserError(f"{verb} is {kind}{hint}; the verbs are {', '.join(VERBS)}")
    arguments.remove(verb)
    from dlm_jax.parallel.host_memory import keep_freed_memory

    keep_freed_memory()  # must precede the threads of JAX, which a verb may start
    module = importlib.import_module(f"dlm_jax.cli.{VERBS[verb][0]}")
    from dlm_jax.cli.flags import parse

    module.run(parse(verb, VERBS[verb][1], module.add_arguments, arguments))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
