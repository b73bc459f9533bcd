"""Watch over the other processes of a run: notices at once that one is gone, and says so.

JAX notices a missing process only after a minute, and then aborts the others from within its own
code. Therefore all processes hold an idle connection to the first one: the system closes it when a
process ends in any way, or when its machine no longer answers.
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

# Seconds in which this process may still report its own error: often all processes end for the same
# reason.
_GRACE_S = 3.0
_CONNECT_S = 5.0
# TCP keep-alive: seconds of silence before the first probe, seconds between probes, and number of
# unanswered probes after which the other machine counts as gone.
_PROBE_AFTER_S, _PROBE_EVERY_S, _MOST_PROBES = 15, 5, 4
_LONGEST_LINE = 4096


def watch_each_other(known_host: str | None = None) -> None:
    """Makes every process of the run exit with a clear message soon after another one is gone.

    All processes must call it. If connections between them are blocked, a warning is logged, and
    only JAX watches over the processes.

    Args:
        known_host: host name or address of the first process, if it is known.
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
    """Delays an abort by six seconds, so that another thread can say why the process ends.

    JAX aborts at once if the first process is gone. As no Python code can run in the aborting
    thread, the C library's ``sleep`` becomes the handler of SIGABRT, and sleeps for as many seconds
    as the number of that signal, 6.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def end_without(index: int, host: str) -> None:
    """Prints that another process is gone, and exits this one at once with status 1.

    Args:
        index: index of the process that is gone.
        host: its host name.
    """
    print(
        f"error: process {index} of this run, on {host}, is gone: it has failed (its own log says "
        "why), was killed, or its machine cannot be reached. Start the same command on all of them "
        "again: a run continues from its latest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class _Peers:
    """Connections of this process: to all others if it is the first one, else to the first one.

    Messages are lines of JSON objects. The first one in each direction introduces the sender;
    ``gone`` names a process that is gone; ``bye`` announces that the sender ends in good order.

    Args:
        token: secret of the run, by which its processes recognise each other.
        end: called with index and host of a process that is gone; it should exit.
    """

    def __init__(self, token: str, end: Callable[[int, str], None] = end_without):
        self._token = token
        self._end = end
        self._connections: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def accept(self, listener: socket.socket, count: int) -> None:
        """Accepts connections of ``count`` other processes, in a thread."""
        _in_thread(self._accept, listener, count)

    def connect(self, hosts: Sequence[str], port: int, index: int) -> None:
        """Connects to the first process, by the first of its names and addresses that works.

        Logs a warning if none does.

        Args:
            hosts: names and addresses of the first process's machine.
            port: port that the first process listens at.
            index: index of this process.
        """
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
        """Tells the connected processes that this one ends in good order."""
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
        """Waits until a process says goodbye, is gone, or reports that another one is gone.

        In the last two cases, it informs the other connected processes and ends this one.
        """
        _keep_alive(connection)
        with self._lock:
            self._connections[index] = connection
            if self._is_over:
                _send(connection, {"bye": True})
        try:
            message = _next_of(lines)
        except (OSError, ValueError):
            message = {}
        if message.get("bye"):
            return
        index, host = message.get("gone", (index, host))
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
    """Reads the next message; an empty one if the connection has ended.

    Raises ``ValueError`` for a line that is not a JSON object.
    """
    line = json.loads(lines.readline(_LONGEST_LINE) or "{}")
    if not isinstance(line, dict):
        raise ValueError(f"{line} is no object")
    return line


def _close(connection: socket.socket, lines: io.TextIOBase) -> None:
    """Closes a connection, and the file that reads from it, without which it would stay open."""
    lines.close()
    connection.close()


def _listener() -> socket.socket:
    """Opens a socket that accepts connections of any address, IPv6 if possible, at a free port."""
    with contextlib.suppress(OSError):  # IPv6 may be switched off
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket) -> None:
    """Makes the system close a connection soon if the other machine does not answer."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _PROBE_AFTER_S),
        ("TCP_KEEPINTVL", _PROBE_EVERY_S),
        ("TCP_KEEPCNT", _MOST_PROBES),
    ):
        if hasattr(socket, option):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _own_hosts() -> list[str]:
    """Returns names and addresses of this machine; other machines may not know all of them."""
    name = socket.gethostname()
    hosts = [name, socket.getfqdn()]
    with contextlib.suppress(OSError):
        hosts += [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)]
    return list(dict.fromkeys(hosts))
