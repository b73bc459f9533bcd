"""Noticing at once that another process of the run is gone, and saying so in a sentence.

JAX misses a process after a minute, and then aborts the others in the midst of its own code. So all
processes hold a connection to the first one, over which nothing is sent: the system closes it when
a process ends, however that ends, and when its machine no longer answers.
"""

import atexit
import contextlib
import ctypes
import hmac
import io
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax

from ddae_jax.training.multihost import gather_json

_log = logging.getLogger(__name__)

# In which a process may still say by itself why it ends: often all of them end for the same reason.
_GRACE_S = 3.0
_CONNECT_S = 5.0
# A machine that does not answer so many times, in so many seconds each, is gone.
_ASK_AFTER_S, _ASK_EVERY_S, _MOST_ASKED = 15, 5, 4
_LONGEST_LINE = 4096


def watch_each_other(known_host: str | None = None) -> None:
    """Lets every process of the run end soon after another one is gone, with a sentence.

    All of them have to call it. Where connections between them are not let through, that is told in
    the log, and JAX alone watches over them.

    Args:
        known_host: by which the first process can be reached, if that is known.
    """
    if jax.process_count() == 1:
        return
    delay_aborts()
    is_first = jax.process_index() == 0
    listener = _listener() if is_first else None
    own = {"hosts": _own_hosts(), "token": secrets.token_hex(16)}
    own["port"] = listener.getsockname()[1] if is_first else 0
    first = gather_json(own)[0]
    peers = _Peers(first["token"])
    atexit.register(peers.say_goodbye)
    if is_first:
        peers.accept(listener, jax.process_count() - 1)
    else:
        hosts = [known_host] if known_host else []
        peers.connect([*hosts, *first["hosts"]], first["port"], jax.process_index())


def delay_aborts() -> None:
    """Lets an abort wait for six seconds, in which another thread can say why the process ends.

    JAX aborts at once where the first process is gone. Its thread is sent to sleep by the system's
    own function, as no Python can run there: it takes the number of the signal, 6, for seconds.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def end_without(index: int, host: str) -> None:
    """Ends this process at once, as another one is gone."""
    print(
        f"error: process {index} of this run, on {host}, is gone: it has failed (its own log says "
        "why), was killed, or its machine cannot be reached. Start the same command on all of them "
        "again: a run continues from its latest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class _Peers:
    """The connections of this process: to all others in the first one, else to that one.

    A line is a JSON object: who one is, or who is gone. ``bye`` ends a connection in good order.
    """

    def __init__(self, token: str, end: Callable[[int, str], None] = end_without):
        self._token = token
        self._end = end
        self._connections: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def accept(self, listener: socket.socket, count: int) -> None:
        """Waits in a thread for so many others."""
        _in_thread(self._accept, listener, count)

    def connect(self, hosts: Sequence[str], port: int, index: int) -> None:
        """Connects with the first process, by whichever of its names leads there."""
        hello = {"token": self._token, "index": index, "host": socket.gethostname()}
        for host in dict.fromkeys(hosts):
            with contextlib.suppress(OSError, ValueError):
                connection = socket.create_connection((host, port), timeout=_CONNECT_S)
                lines = connection.makefile("r")
                _send(connection, hello)
                answer = _next_of(lines)
                if hmac.compare_digest(answer.get("token", ""), self._token):
                    _in_thread(self._watch, connection, lines, 0, answer["host"])
                    return
                _close(connection, lines)
        _log.warning(
            "the first process cannot be reached at port %d of %s: if a process is killed, the "
            "others end a minute later, with a message of JAX",
            port,
            ", ".join(dict.fromkeys(hosts)),
        )

    def say_goodbye(self) -> None:
        """Tells the others that this process ends in good order."""
        with self._lock:
            self._is_over = True
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    _send(connection, {"bye": True})

    def _accept(self, listener: socket.socket, count: int) -> None:
        known = set()
        with listener:
            while len(known) < count:
                connection, _ = listener.accept()
                connection.settimeout(_CONNECT_S)
                lines = connection.makefile("r")
                try:
                    hello = _next_of(lines)
                    if not hmac.compare_digest(hello.get("token", ""), self._token):
                        raise ValueError("not of this run")
                    _send(connection, {"token": self._token, "host": socket.gethostname()})
                except (OSError, ValueError, TypeError):
                    _close(connection, lines)
                    continue
                known.add(hello["index"])
                _in_thread(self._watch, connection, lines, hello["index"], hello["host"])

    def _watch(
        self, connection: socket.socket, lines: io.TextIOBase, index: int, host: str
    ) -> None:
        """Waits until a process says goodbye, is gone, or says that another one is."""
        _keep_alive(connection)
        with self._lock:
            self._connections[index] = connection
            if self._is_over:
                _send(connection, {"bye": True})
        try:
            told = _next_of(lines)
        except (OSError, ValueError):
            told = {}
        if told.get("bye"):
            return
        index, host = told.get("gone", (index, host))
        with self._lock:
            if self._is_over:
                return
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    _send(connection, {"gone": (index, host)})
        time.sleep(_GRACE_S)
        if not self._is_over:
            self._end(index, host)


def _in_thread(call: Callable[..., None], *arguments) -> None:
    threading.Thread(target=call, args=arguments, daemon=True).start()


def _send(connection: socket.socket, line: dict) -> None:
    connection.sendall(json.dumps(line).encode() + b"\n")


def _next_of(lines: io.TextIOBase) -> dict:
    """The next line; empty where the connection has ended. Raises ``ValueError`` for others."""
    line = json.loads(lines.readline(_LONGEST_LINE) or "{}")
    if not isinstance(line, dict):
        raise ValueError(f"{line} is no object")
    return line


def _close(connection: socket.socket, lines: io.TextIOBase) -> None:
    """Closes a connection, and what is read of it: before that, the other side would not see it."""
    lines.close()
    connection.close()


def _listener() -> socket.socket:
    """Takes connections of any address, at whichever port is free."""
    with contextlib.suppress(OSError):  # where there is no IPv6
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket) -> None:
    """Lets the system end a connection soon whose other machine does not answer."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _ASK_AFTER_S),
        ("TCP_KEEPINTVL", _ASK_EVERY_S),
        ("TCP_KEEPCNT", _MOST_ASKED),
    ):
        if hasattr(socket, option):  # Linux has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _own_hosts() -> list[str]:
    """Names and addresses of this machine, of which others may know one or the other."""
    name = socket.gethostname()
    found = [name, socket.getfqdn()]
    with contextlib.suppress(OSError):
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)]
    return list(dict.fromkeys(found))
