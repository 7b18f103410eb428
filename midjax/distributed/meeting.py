# SPDX-License-Identifier: Apache-2.0
"""All processes of a run say that they are there, before JAX is told to connect them.

    process 1 .. n-1 --a line of JSON--> process 0 --when all have come, or too late--> all

JAX's own start ends a process with SIGABRT when another one does not come, and does not say which.
This meeting is held at the address of JAX's coordinator, which begins to listen when it is over.
Nothing that is said here is secret, and nothing but text is made of it.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from midjax.distributed import place as place_lib

# JAX's own, for the address to listen at; all of the machine's, unless it says otherwise.
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"
_MOST_BYTES = 1 << 16
_LINE_SECONDS = 5.0  # for a line that was begun
_RETRY_SECONDS = 0.2


class MissingError(ValueError):
    """A process did not come, or not in time. It may come to a new start."""

    exit_code = 134  # as where JAX finds that a process is lost


class MeetingError(ValueError):
    """Processes met that do not belong together."""


def hold(place: place_lib.Place, facts: Mapping[str, Any], seconds: float) -> list[str]:
    """Waits until all processes are there.

    Args:
      place: of this one.
      facts: what must be the same everywhere, such as versions. JSON.
      seconds: to wait.

    Returns:
      The name of each process's machine.

    Raises:
      MissingError: names the processes that did not come in time.
      MeetingError: two have one number, or their facts differ. All of them raise it.
    """
    hello = {
        "process": place.index,
        "processes": place.number,
        "host": socket.gethostname(),
        **facts,
    }
    until = time.monotonic() + seconds
    if place.index == 0:
        return _receive(place, hello, until, seconds)
    return _visit(place, hello, until, seconds)


def _receive(
    place: place_lib.Place, hello: dict[str, Any], until: float, seconds: float
) -> list[str]:
    """Process 0: hears all, then answers all."""
    came, guests = {0: hello}, dict[int, socket.socket]()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(place))
        wrong = ""
        while len(came) < place.number and not wrong and (left := until - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                break
            stack.enter_context(guest)
            for index in [index for index, other in guests.items() if _is_gone(other)]:
                del came[index], guests[index]  # it was started again, or will be missed
            told = _line(guest)
            if told is None or not _is_hello(told):
                continue
            wrong = _objection(told, came, hello)
            guests[-1 if wrong else told["process"]] = guest
            if not wrong:
                came[told["process"]] = told
        error = MeetingError(wrong) if wrong else _missing(place, came, seconds)
        hosts = [came[index]["host"] for index in sorted(came)]
        reply = {"hosts": hosts} if error is None else {type(error).__name__: str(error)}
        for guest in guests.values():
            with contextlib.suppress(OSError):  # it went away: JAX will miss it
                guest.sendall(json.dumps(reply).encode() + b"\n")
        if error is not None:
            raise error
        return hosts


def _missing(
    place: place_lib.Place, came: Mapping[int, dict[str, Any]], seconds: float
) -> ValueError | None:
    missing = [str(index) for index in range(place.number) if index not in came]
    if not missing:
        return None
    here = ", ".join(f"{index} ({came[index]['host']})" for index in sorted(came))
    return MissingError(
        f"{len(missing)} of {place.number} processes did not come to {place.address} in "
        f"{seconds:g} s: {', '.join(missing)}. Here are: {here}. Start them all, or look why those "
        "did not start."
    )


def _is_gone(guest: socket.socket) -> bool:
    """Whether one who waits for an answer, and has nothing more to say, closed its end."""
    return bool(select.select([guest], [], [], 0)[0])


def _is_hello(told: Mapping[str, Any]) -> bool:
    """Whether it is what a process says: one of another run, of more processes, is told so."""
    index, of = told.get("process"), told.get("processes")
    is_whole = type(index) is int and type(of) is int and 0 <= index < of
    return is_whole and isinstance(told.get("host"), str)


def _objection(
    told: Mapping[str, Any], came: Mapping[int, dict[str, Any]], own: Mapping[str, Any]
) -> str:
    """Why a process that came does not belong here; empty if it does."""
    index = told["process"]
    if index in came:
        return (
            f"Two processes say that they are process {index}, on {came[index]['host']} and on "
            f"{told['host']}. Give each its own number."
        )
    differ = [
        f"{name} = {told.get(name)!r} instead of {value!r}"
        for name, value in own.items()
        if name not in ("process", "host") and told.get(name) != value
    ]
    who = f"Process {index} ({told['host']})"
    return f"{who} has {', '.join(differ)} of process 0 ({own['host']})." if differ else ""


def _visit(place: place_lib.Place, hello: dict[str, Any], until: float, seconds: float) -> Any:
    """Another process: says that it is there, as often as nobody listens, and hears the answer."""
    host, _, port = place.address.rpartition(":")
    last = "nobody listens there"
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as zero:
                zero.sendall(json.dumps(hello).encode() + b"\n")
                # Process 0 may have begun to wait later: it is the one that gives up and says why.
                told = _line(zero, seconds + _LINE_SECONDS)
        except OSError as error:
            last = str(error)
        else:
            last = "what answers there is no process 0 that is starting"
            if told is not None and "hosts" in told:
                return told["hosts"]
            for kind in (MissingError, MeetingError):
                if told is not None and kind.__name__ in told:
                    raise kind(told[kind.__name__])
        time.sleep(min(_RETRY_SECONDS, max(until - time.monotonic(), 0.0)))
    raise MissingError(
        f"Process {place.index} ({hello['host']}) did not reach process 0 at {place.address} in "
        f"{seconds:g} s: {last}. Start process 0 too, where the others can reach that address; "
        "where a run is going on there, all of its processes begin anew together."
    )


def _listener(place: place_lib.Place) -> socket.socket:
    host, _, port = (os.environ.get(_BIND) or f":{place.address.rpartition(':')[2]}").rpartition(
        ":"
    )
    host = host.strip("[]")
    try:
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family)
    except OSError as error:
        raise MeetingError(
            f"Process 0 cannot listen at port {port}: {error}. Another run may use it: end that, "
            f"or choose another port in {place_lib.ADDRESS}."
        ) from error


def _line(peer: socket.socket, seconds: float = _LINE_SECONDS) -> dict[str, Any] | None:
    """The JSON object that somebody says; None for anything else."""
    peer.settimeout(seconds)
    held = b""
    try:
        while not held.endswith(b"\n"):
            piece = peer.recv(_MOST_BYTES)
            held += piece
            if not piece or len(held) > _MOST_BYTES:
                return None
        told = json.loads(held)
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
