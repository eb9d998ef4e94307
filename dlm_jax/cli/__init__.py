"""`dlm <verb>`: finds the verb, turns mistakes into one sentence, and sets the exit code.

Nothing but the standard library is imported before a verb is known; each verb is a module of its
own with `add_arguments(parser)` and `run(arguments)`, which may return an exit code.

Exit codes: 0 done, 1 the run failed (of `plan`: it does not fit), 2 a wrong flag, config, task or
checkpoint (retrying is useless), 42 preempted, hung, or left by another process of the run (the
same command goes on with it), 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from dlm_jax.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RETRY,
    EXIT_USER_ERROR,
    RetryError,
    RunError,
    UserError,
    nearest,
)

EXIT_INTERRUPTED = 130

VERBS = {
    "train": ("train", "adapt, finetune or pretrain a model, as gin files say"),
    "length": ("length", "train the predictor of answers' lengths for a finished run"),
    "eval": ("evaluate", "measure a run by likelihood and by its answers"),
    "sweep": ("sweep", "evaluate several models on several tasks, and plot how they scale"),
    "sample": ("sample", "answer prompts, or fill gaps in a text"),
    "tasks": ("tasks", "list tasks, or show examples of one as the model gets them"),
    "import": ("import_model", "turn pretrained weights into a run folder"),
    "prune": ("prune", "cut a model's vocabulary to the pieces of a corpus"),
    "export": ("export_model", "turn a run into a Hugging Face folder"),
    "inspect": ("inspect_model", "print what a run, a checkpoint or a Hugging Face folder is"),
    "plan": ("plan", "say whether a run fits on hardware that is not here, and how fast at best"),
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
    code, patience = EXIT_DONE, 3.0
    try:
        code = _run(arguments)
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"dlm: error: {_one_line(error)}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except RetryError as error:
        print(f"dlm: {_one_line(error)}", file=sys.stderr)
        code = EXIT_RETRY
    except KeyboardInterrupt as error:
        print(f"dlm: interrupted{_after_colon(error)}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough; Python must not complain at exit as well.
        sys.stdout = None  # type: ignore[assignment]
    except RunError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"dlm: failed: {_one_line(error)}", file=sys.stderr)
        code, patience = EXIT_FAILED, 0.0
    except Exception as error:
        code, patience = EXIT_FAILED, 0.0
        if (multihost := _multihost()) and multihost.is_lost_peer(error):
            code = EXIT_RETRY
            print(
                "dlm: lost another process of the run; the same command goes on with it "
                f"({_one_line(error)})",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
            print(f"dlm: failed: {type(error).__name__}: {_one_line(error)}", file=sys.stderr)
    if code and (multihost := _multihost()):
        multihost.leave(code, patience)
    return code


def _multihost() -> Any:
    """The module of runs with several processes, where it is in use."""
    return sys.modules.get("dlm_jax.parallel.multihost")


def _after_colon(error: BaseException) -> str:
    return f": {_one_line(error)}" if str(error) else ""


def _run(arguments: list[str]) -> int:
    verb = next((item for item in arguments if item != "--debug"), "--help")
    if verb in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        lines = (f"  {name:<{width}}  {text}" for name, (_, text) in VERBS.items())
        print(_HELP.format(verbs="\n".join(lines)))
        return EXIT_DONE
    if verb == "--version":
        from importlib.metadata import version

        print(f"dlm_jax {version('dlm_jax')}")
        return EXIT_DONE
    if verb not in VERBS:
        kind = "a flag before any verb" if verb.startswith("-") else "no verb"
        hint = nearest(verb, VERBS)
        raise UserError(f"{verb} is {kind}{hint}; the verbs are {', '.join(VERBS)}")
    arguments.remove(verb)
    from dlm_jax.parallel.host_memory import keep_freed_memory
    from dlm_jax.parallel.tpu_machine import keep_libtpu_quiet

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # TensorFlow's greetings, not its warnings
    keep_libtpu_quiet(os.environ)
    keep_freed_memory()  # must precede the threads of JAX, which a verb may start
    module = importlib.import_module(f"dlm_jax.cli.{VERBS[verb][0]}")
    from dlm_jax.cli.flags import parse

    return module.run(parse(verb, VERBS[verb][1], module.add_arguments, arguments)) or EXIT_DONE


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
