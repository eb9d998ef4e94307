"""Several processes as one run: how they meet, agree on things, and leave.

Everything here does nothing at once for a process that is alone.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name

from dlm_jax.errors import RetryError, UserError
from dlm_jax.parallel.cluster import Cluster
from dlm_jax.parallel.lifeline import Lifeline, host_lifelines, join_lifeline

T = TypeVar("T")
R = TypeVar("R")

# Errors that would come again however often the processes are started.
_LASTING = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
_POLL_MILLISECONDS = 2000
_LIFELINE = "dlm_jax/lifeline"
# Characters of a text that are handed over at a time; messages have a limit.
_PART = 1 << 18
_numbers = itertools.count()
# Where this process wrote its text of the last exchange.
_old: str | None = None
_lifeline: Lifeline | None = None


def initialize(
    cluster: Cluster,
    *,
    heartbeat_timeout: int = 60,
    shutdown_timeout: int = 60,
    initialization_timeout: int = 300,
) -> None:
    """Joins the other processes of the run; must precede every use of a device.

    Args:
        cluster: who and where they are.
        heartbeat_timeout: seconds of silence after which a process counts as lost. A process that
            dies is noticed at once by the next step; this is for hosts that hang or vanish.
        shutdown_timeout: seconds that a finished process waits for the others to finish.
        initialization_timeout: seconds to wait for the others to start.

    Raises:
        RetryError: the others did not come in time.
    """
    arguments: dict[str, Any] = {}
    if cluster.coordinator is not None:
        _await_name(cluster, initialization_timeout)
        arguments = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
            "local_device_ids": cluster.local_device_ids,
            # Detection would hide all but one GPU under Slurm, and fail in pods that may not read
            # the cluster, even where all is given.
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=shutdown_timeout,
            initialization_timeout=initialization_timeout,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RetryError(
            f"process {cluster.process_id} did not meet the others at {cluster.coordinator} (from "
            f"{cluster.source}) within {initialization_timeout} s: {reason}"
        ) from error
    _hold_on()


def _hold_on() -> None:
    """Ties the processes together, so that the death of one ends all at once."""
    global _lifeline
    state = distributed.global_state
    client: Any = state.client
    try:
        if state.process_id == 0:
            _lifeline = host_lifelines(
                state.num_processes - 1, lambda text: client.key_value_set(_LIFELINE, text)
            )
        else:
            host = str(state.coordinator_address).rpartition(":")[0].strip("[]")
            _lifeline = join_lifeline(host, _read(client, _LIFELINE))
    except OSError as error:
        # A firewall between the hosts, say: slower, but not wrong.
        print(
            f"dlm: no lifeline between the processes ({error}); the heartbeat alone tells when one "
            "is lost",
            file=sys.stderr,
        )
        return
    # Registered after JAX's own, hence called before it waits for the others.
    atexit.register(_lifeline.let_go)


def _await_name(cluster: Cluster, timeout: int) -> None:
    """Waits until the coordinator's name is known: Kubernetes publishes it when its pod starts."""
    name = str(cluster.coordinator).rpartition(":")[0].strip("[]")
    until = time.monotonic() + timeout
    while True:
        try:
            socket.getaddrinfo(name, None)
            return
        except socket.gaierror as error:
            if time.monotonic() > until:
                raise RetryError(
                    f"the name {name} of process 0 (from {cluster.source}) was not known within "
                    f"{timeout} s"
                ) from error
            time.sleep(min(5.0, timeout))


def _count() -> int:
    # Not jax.process_count(), which starts the devices.
    return distributed.global_state.num_processes


def is_main() -> bool:
    """Whether this process writes what is written once: metrics, descriptions, lines on screen."""
    return distributed.global_state.process_id == 0


def exchange(topic: str, text: str) -> list[str]:
    """Returns the text of every process, by process id; all must call it, in the same order.

    It waits as long as the others live: one of them may still be reading its data. When one dies,
    the coordination service ends this process.
    """
    if _count() == 1:
        return [text]
    global _old
    client: Any = distributed.global_state.client
    folder = f"dlm_jax/{next(_numbers)}/{topic}"
    own = f"{folder}/{distributed.global_state.process_id}"
    parts = range(0, max(1, len(text)), _PART)
    for number, begin in enumerate(parts):
        client.key_value_set(f"{own}/{number}", f"={text[begin : begin + _PART]}")
    client.key_value_set(f"{own}/parts", str(len(parts)))
    texts = [_read_parts(client, f"{folder}/{i}") for i in range(_count())]
    # Every process has written this text, so every one of them has read the one before.
    if _old is not None:
        client.key_value_delete(_old)
    _old = own
    return texts


def share_out(topic: str, items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Has each item worked on by one of the processes; all must call it, in the same order.

    Devices of different processes are not made to meet: one that has fewer items, or none, waits
    for what the others write down.

    Args:
        topic: a word for the exchange.
        items: the same on all processes; they are dealt out in turn.
        work: returns something that JSON keeps as it is.

    Returns:
        The results of all items, in their order.
    """
    count, own = _count(), distributed.global_state.process_id
    done = [work(item) for number, item in enumerate(items) if number % count == own]
    if count == 1:
        return done
    shares = [json.loads(text) for text in exchange(topic, json.dumps(done))]
    results: list[Any] = [None] * sum(map(len, shares))
    for process, share in enumerate(shares):
        results[process::count] = share
    return results


def _read_parts(client: Any, key: str) -> str:
    parts = int(_read(client, f"{key}/parts"))
    return "".join(_read(client, f"{key}/{number}")[1:] for number in range(parts))


def _read(client: Any, key: str) -> str:
    while True:
        try:
            return client.blocking_key_value_get(key, _POLL_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def together(topic: str, act: Callable[[], T]) -> T:
    """Calls `act` on every process; a `UserError` of one becomes that of all.

    Without it, one host whose data are missing would leave the others waiting in the first step.

    Raises:
        UserError: what `act` raised here or, with the process named, elsewhere.
    """
    if _count() == 1:
        return act()
    own: UserError | None = None
    result: Any = None
    try:
        result = act()
    except UserError as error:
        own = error
    sentences = exchange(topic, "" if own is None else str(own))
    failed = [i for i, sentence in enumerate(sentences) if sentence]
    if failed:
        everyone = len(failed) == len(sentences) and len(set(sentences)) == 1
        where = "" if everyone else f" (on process {failed[0]} of {len(sentences)})"
        raise UserError(f"{sentences[failed[0]]}{where}") from own
    return result


def require_equal(topic: str, facts: Mapping[str, Any], advice: str) -> None:
    """Checks that all processes hold the same facts; all of them raise if one does not.

    Args:
        topic: a word for the exchange.
        facts: JSON values by name.
        advice: ends the sentence, for example 'start all with the same flags'.

    Raises:
        UserError: naming the first fact, the process and both values.
    """
    texts = exchange(topic, json.dumps(dict(facts), sort_keys=True))
    first, *others = map(json.loads, texts)
    for number, other in enumerate(others, start=1):
        for name in sorted({*first, *other}):
            if name not in other or name not in first or first[name] != other[name]:
                here, there = (
                    _short(values[name]) if name in values else "nothing"
                    for values in (first, other)
                )
                raise UserError(
                    f"process {number} has {there} for {name}, and process 0 has {here}: {advice}"
                )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of a run of several processes is that of a process that is gone.

    The collective of each platform words it in its own way, so all errors of the runtime count but
    those that no restart mends, such as too little memory.
    """
    return (
        _count() > 1
        and isinstance(error, jax.errors.JaxRuntimeError)
        and not any(status in str(error) for status in _LASTING)
    )


def leave(code: int, patience: float = 3.0) -> None:
    """Ends a process of several with an exit code, in bounded time; returns where it is alone.

    At exit JAX waits for the other processes, for minutes if one of them is gone or still at work.

    Args:
        code: exit code.
        patience: seconds to wait for the others to leave as well; 0 where one is lost.
    """
    if _count() == 1:
        return
    if patience:
        if _lifeline is not None:
            _lifeline.let_go()
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(patience)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
