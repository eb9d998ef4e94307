"""A connection that breaks when a process dies, so that the others of its run end at once.

A collective whose partner is gone fails in milliseconds, or leaves some of its threads waiting for
a minute; which of the two is a matter of chance. The kernel closes the connections of a process
however it ends, and a thread that waits for that needs no heartbeat to be tuned.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from dlm_jax.errors import EXIT_RETRY

_BYE = b"."
_PATIENCE = 30.0


class Lifeline:
    """Ends this process when a connection breaks that has not said goodbye."""

    def __init__(self, links: list[socket.socket]) -> None:
        """Args: links: to all others on process 0, to process 0 on the others."""
        self._links = links
        threading.Thread(target=self._watch, name="dlm-lifeline", daemon=True).start()

    def let_go(self) -> None:
        """Says goodbye: this process is about to leave in order."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.sendall(_BYE)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                selector.register(link, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    one: Any = key.fileobj
                    if _heard(one) == _BYE:
                        selector.unregister(one)
                    else:
                        _leave()


def _heard(link: socket.socket) -> bytes:
    try:
        return link.recv(1)
    except OSError:
        return b""


def _leave() -> None:
    print("dlm: lost another process of the run; the same command goes on with it", file=sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_RETRY)


def host_lifelines(count: int, publish: Callable[[str], None]) -> Lifeline:
    """On process 0: waits for the connections of the `count` others.

    Args:
        count: how many others there are.
        publish: tells them where to connect, and the password.

    Raises:
        OSError: they did not come in time.
    """
    password = secrets.token_hex(16)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    links: list[socket.socket] = []
    until = time.monotonic() + _PATIENCE
    with socket.create_server(("", 0), family=family, backlog=count, dualstack_ipv6=dual) as server:
        publish(f"{server.getsockname()[1]} {password}")
        while len(links) < count:
            server.settimeout(max(0.1, until - time.monotonic()))
            link, _ = server.accept()
            link.settimeout(5.0)
            if _whole(link, len(password)) == password.encode():
                link.settimeout(None)
                links.append(link)
            else:
                link.close()
    return Lifeline(links)


def _whole(link: socket.socket, size: int) -> bytes:
    text = b""
    with contextlib.suppress(OSError):
        while len(text) < size and (more := link.recv(size - len(text))):
            text += more
    return text


def join_lifeline(host: str, published: str) -> Lifeline:
    """On another process: connects to process 0.

    Raises:
        OSError: it cannot be reached.
    """
    port, password = published.split()
    link = socket.create_connection((host, int(port)), timeout=_PATIENCE)
    link.settimeout(None)
    link.sendall(password.encode())
    return Lifeline([link])
