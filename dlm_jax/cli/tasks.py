"""`dlm tasks`."""

from __future__ import annotations

import argparse

from dlm_jax.cli.flags import add_import, import_modules
from dlm_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("action", choices=("list", "show"), help="what to print")
    parser.add_argument("name", nargs="?", help="task or mixture to show")
    parser.add_argument("--vocabulary", metavar="PATH", help="tokenizer to show it with, or run")
    parser.add_argument("--split", help="split to show; the first one by default")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("-n", type=int, default=5, metavar="EXAMPLES", help="examples to show (5)")
    add_import(parser)


def run(arguments: argparse.Namespace) -> None:
    """Lists all tasks, or shows examples of one, their maskable part marked."""
    from dlm_jax.data.tasks import shipped_modules

    shipped = [f"dlm_jax.tasks.{name}" for name in shipped_modules()]
    import_modules([*shipped, *arguments.modules])
    if arguments.action == "list":
        _list()
    elif not arguments.name or not arguments.vocabulary:
        raise UserError("dlm tasks show needs the name of a task, and --vocabulary=PATH")
    else:
        _show(arguments)


def _list() -> None:
    from dlm_jax.data.tasks import Mixture, get_task, list_tasks

    names = list_tasks()
    if not names:
        print("no tasks are registered; --import=MODULE brings some")
    width = max(map(len, names), default=0)
    for name in names:
        task = get_task(name)
        if isinstance(task, Mixture):
            text = "mixture of " + ", ".join(f"{k} {v:.0%}" for k, v in task.proportions.items())
        else:
            text = f"{task.description or 'no description'} [{', '.join(task.split_names)}]"
            text += " (evaluation only)" if task.evaluation_only else ""
        print(f"{name:<{width}}  {text}")


def _show(arguments: argparse.Namespace) -> None:
    from dlm_jax.data.preview import preview
    from dlm_jax.data.vocabularies import load_vocabulary

    if arguments.n < 1:
        raise UserError(f"-n is {arguments.n}, and must be 1 example or more")
    shown = preview(
        arguments.name,
        load_vocabulary(arguments.vocabulary),
        arguments.n,
        split=arguments.split,
        length=arguments.length,
    )
    print(f"{shown.name}, split {shown.split}; what is between ⟦ and ⟧ may be masked")
    for name, share in shown.proportions.items():
        prompt, response = shown.mean_lengths[name]
        size = shown.sizes[name]
        print(
            f"\n{name}: {share:.0%}; prompt {prompt:.1f} and response {response:.1f} tokens", end=""
        )
        print(f" on average over the first {size} examples")
        print(f"  truncation to {arguments.length} tokens: {shown.counts[name]}")
        for example in shown.examples:
            if example.task == name:
                print(f"  [{example.record}] {example.text}")
