"""What ends a command, the exit code of each, and the search for a name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
"""Everything that was asked for is done."""
EXIT_FAILED = 1
"""The run failed, and would fail again."""
EXIT_USER_ERROR = 2
"""A flag, config, task or checkpoint is wrong; retrying is useless."""
EXIT_RETRY = 42
"""The run was preempted, lost a process or hung: the same command goes on with it."""


class UserError(Exception):
    """Something the user can mend: one sentence with the key, the value and where it stands.

    The command line prints it and exits with code 2, which schedulers do not retry.
    """


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns ``' (did you mean X?)'`` for the closest candidate, or ``''`` when none is close."""
    names = list(candidates)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not matches:
        folded = {candidate.lower(): candidate for candidate in names}
        matches = [folded[name.lower()]] if name.lower() in folded else []
    return f" (did you mean {matches[0]}?)" if matches else ""


class RunError(Exception):
    """The run itself failed, for example by a loss that is not finite: exit code 1."""


class RetryError(Exception):
    """The run stopped, and the same command goes on with it: exit code 42."""
