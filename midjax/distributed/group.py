# SPDX-License-Identifier: Apache-2.0
"""The processes of a run as one: what they do together, and that none is left behind.

    with running(hosts):       joins the others, if the environment names any
        first(...)             process 0 does it, all hear what came of it
        together(...)          each does it, all hear whether somebody failed
        same(...)              all have the same facts, or are told which differ

Every call is a wait with a timeout that names who is missing, so the calls must be the same on all
processes, in the same order. Where one fails outside of them, the others, which may wait for it in
a computation on their devices, are ended with its message and its exit code.

This is the one module that touches JAX's coordination service, which has no public interface.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

import midjax
from midjax import log
from midjax.distributed import meeting, tpus
from midjax.distributed import place as place_lib

_FAILED = "midjax/failed"
_WATCH_MS = 3_600_000  # the watcher asks again, for as long as the run lasts
# A process that hears of another one's end may be about to tell of its own, or of the same cause.
_GRACE_SECONDS = 5.0
_SHOWN_CHARACTERS = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """How long the processes of a run wait for each other.

    Attributes:
      start_seconds: for all to come, and again for JAX to connect them.
      heartbeat_seconds: without a sign of life from a process before JAX ends all others.
      wait_seconds: for all to come to a point between updates, such as the end of a restore.
    """

    start_seconds: int = 300
    heartbeat_seconds: int = 100
    wait_seconds: int = 900

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"Hosts: every number of seconds must be 1 or more, got {self}.")


class ElsewhereError(ValueError):
    """Another process failed.

    Attributes:
      exit_code: of its error.
    """

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


class DifferError(ValueError):
    """The processes do not agree."""


@dataclasses.dataclass
class _Group:
    """The processes, while they run. `steps` counts the calls that all of them make."""

    place: place_lib.Place
    names: Sequence[str]
    wait_seconds: int
    client: Any
    steps: int = 0
    watcher: threading.Thread | None = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def named(self, index: int) -> str:
        return f"process {index} ({self.names[index]})"


_group: _Group | None = None


def count() -> int:
    """Processes of this run. No device is touched."""
    return _group.place.number if _group else 1


def index() -> int:
    """Of this process, from 0."""
    return _group.place.index if _group else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return index() == 0


@contextlib.contextmanager
def running(hosts: Hosts) -> Iterator[None]:
    """Joins the other processes for the time of the context, before a device is touched.

    Inside, only process 0 speaks. Alone, it does nothing. An error inside ends all processes.

    Raises:
      tpus.NoTpuError: it is to compute on a TPU, and cannot.
      place.PlaceError: see `place.find`.
      meeting.MissingError: a process did not come, or was lost on the way.
      meeting.MeetingError: processes that do not belong together.
    """
    global _group
    place = place_lib.find(seconds=hosts.start_seconds)
    if place is None:
        tpus.check_library(os.environ)
        tpus.check_chips(os.environ)
        yield
        return
    if _group is not None:
        raise ValueError("The processes are connected already, and connect once.")
    _group = _joined(place, hosts)
    if not is_first():
        log.quiet(True)
    watcher = threading.Thread(target=_watch, args=(_group,), name="other processes", daemon=True)
    _group.watcher = watcher
    watcher.start()
    try:
        tpus.check_library(os.environ)  # here, so that all hear of it
        tpus.check_chips(os.environ, found=place.is_tpu)
        yield
    except BaseException as error:
        if not getattr(error, "is_everywhere", False):
            _tell(_group, error)
        raise
    finally:
        _leave(_group)
        _group = None
        log.quiet(False)


def _joined(place: place_lib.Place, hosts: Hosts) -> _Group:
    facts = {"midjax": midjax.__version__, "jax": jax.__version__}
    names = meeting.hold(place, facts, hosts.start_seconds)
    jax.distributed.initialize(
        place.address,
        place.number,
        place.index,
        initialization_timeout=hosts.start_seconds,
        heartbeat_timeout_seconds=hosts.heartbeat_seconds,
        shutdown_timeout_seconds=hosts.wait_seconds,
        cluster_detection_method="deactivate",
    )
    from jax._src import distributed

    client = distributed.global_state.client
    return _Group(place=place, names=names, wait_seconds=hosts.wait_seconds, client=client)


def first(what: str, work: Callable[..., Any], *given: Any) -> Any:
    """Process 0 does it, while the others wait. Returns what it returned, as JSON holds it.

    Args:
      what: said of who is waited for, as "reading the newest checkpoint".
      work, given: what is to be done, and with what; it returns plain JSON.

    Raises:
      what `work` raised: on process 0.
      ElsewhereError: on the others.
      meeting.MissingError: a process did not come in time.
    """
    if _group is None:
        return work(*given)
    return _shared(what, (lambda: work(*given)) if is_first() else (lambda: None), ())[0]


def together(
    what: str, work: Callable[..., Any], *given: Any, known: Sequence[type[Exception]] = ()
) -> Any:
    """Each process does it. Returns what this one's work returned, where all succeeded.

    Args:
      what, work, given: as of `first`; what it returns may be anything, and stays here.
      known: kinds of errors that a caller may answer, and go on: the others raise them too, made
        of the `told` of the one that was.

    Raises:
      what `work` raised: on one process where it did, and where it raised the same. Of errors that
        differ, one is chosen for all: the first process's that is not `known`, or the first's.
      ElsewhereError, or one of `known`: on the others.
      meeting.MissingError: a process did not come in time.
    """
    if _group is None:
        return work(*given)
    kept: list[Any] = []
    _shared(what, lambda: kept.append(work(*given)), known)
    return kept[0]


def same(what: str, facts: Mapping[str, Any]) -> None:
    """Proves that all processes have the same facts.

    Args:
      what: they are about.
      facts: name -> plain JSON.

    Raises:
      DifferError: names the processes and what differs, on all of them.
      meeting.MissingError: a process did not come in time.
    """
    if _group is None:
        return
    zero, *others = _shared(what, lambda: dict(facts), ())
    differ = [
        f"{_group.named(number)} has {name} {_short(theirs.get(name))}, and "
        f"{_group.named(0)} {_short(zero.get(name))}"
        for number, theirs in enumerate(others, 1)
        for name in sorted(zero.keys() | theirs.keys())
        if theirs.get(name) != zero.get(name)
    ]
    if differ:
        rest = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise _everywhere(DifferError(f"{what} differs: {'; '.join(differ[:4])}{rest}."))


def _shared(what: str, work: Callable[[], Any], known: Sequence[type[Exception]]) -> list[Any]:
    """What `work` returned on each process."""
    assert _group is not None
    own: Exception | None = None
    said: dict[str, Any] = {"at": what}
    try:
        said["result"] = work()
    except Exception as error:
        own = error
        said["error"] = _told(error)
    everybody = _exchanged(_group, what, said)
    errors = {n: theirs["error"] for n, theirs in enumerate(everybody) if "error" in theirs}
    if errors:
        number = _chosen(errors, known)
        if own is not None and errors[_group.place.index] == errors[number]:
            raise _everywhere(own)
        raise _everywhere(_of_another(_group, number, errors, known)) from own
    return [theirs.get("result") for theirs in everybody]


def _chosen(errors: Mapping[int, Mapping[str, Any]], known: Sequence[type[Exception]]) -> int:
    """Whose error all processes raise: if some ended and others went on, these would wait for them.

    A known error may be answered, so it gives way to one that ends the run.
    """
    names = {kind.__name__ for kind in known}
    return min(errors, key=lambda number: (errors[number]["kind"] in names, number))


def _exchanged(group: _Group, what: str, said: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process says here. All say it, or it is an error that names who did not."""
    group.steps += 1
    key = f"midjax/{group.steps}"
    group.client.key_value_set(f"{key}/{group.place.index}", json.dumps(said))
    try:
        group.client.wait_at_barrier(key.replace("/", "-"), group.wait_seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        came = _read(group, key)
        missing = [group.named(i) for i in range(group.place.number) if i not in came]
        who = ", ".join(missing) or str(error).partition("\n")[0]
        raise meeting.MissingError(
            f"{what}: waited {group.wait_seconds} s (Hosts.wait_seconds) for {who}. Look at what "
            "the missing one last said."
        ) from error
    found = _read(group, key)
    places = {number: theirs["at"] for number, theirs in found.items()}
    if len(set(places.values())) > 1:
        raise RuntimeError(f"the processes are at different points: {places}")
    return [found[number] for number in range(group.place.number)]


def _read(group: _Group, key: str) -> dict[int, dict[str, Any]]:
    found = group.client.key_value_dir_get(key)
    return {int(name.rpartition("/")[2]): json.loads(value) for name, value in found}


def _told(error: BaseException) -> dict[str, Any]:
    usual = 2 if isinstance(error, ValueError | OSError) else 1
    kind = type(error).__name__
    return {
        "kind": kind,
        "what": str(error) if usual == 2 else f"{kind}: {error}",
        "told": getattr(error, "told", None),
        "exit_code": getattr(error, "exit_code", usual),
    }


def _of_another(
    group: _Group,
    number: int,
    errors: Mapping[int, Mapping[str, Any]],
    known: Sequence[type[Exception]],
) -> Exception:
    said, own = errors[number], errors.get(group.place.index)
    for kind in known:
        if kind.__name__ == said["kind"]:
            return kind(*said["told"])
    what = f"{group.named(number)} failed: {said['what']}"
    if own is not None:
        what = f"{what} (This one, {group.named(group.place.index)}, failed too: {own['what']})"
    return ElsewhereError(what, said["exit_code"])


def _everywhere(error: Any) -> Any:
    """Marks an error that all processes raise: nobody has to be told."""
    error.is_everywhere = True
    return error


def _tell(group: _Group, error: BaseException) -> None:
    """Lets the others end as this process does."""
    group.over.set()
    said = _told(error) | {"process": group.place.index}
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # somebody was faster, or process 0 gone
        group.client.key_value_set(_FAILED, json.dumps(said))


def _watch(group: _Group) -> None:
    """Ends this process when another one failed and this one can't know, as it waits for it."""
    while not group.over.is_set():
        try:
            said = json.loads(group.client.blocking_key_value_get(_FAILED, _WATCH_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            return  # the run is over, or process 0 is gone, of which JAX tells
        if group.over.wait(_GRACE_SECONDS):
            return
        print(
            f"midjax: {group.named(said['process'])} failed, which ends this process too: "
            f"{said['what']}",
            file=sys.stderr,
        )
        _leave(group)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(said["exit_code"])


def _leave(group: _Group) -> None:
    """Waits for the others to leave too: if process 0 went first, JAX would end them."""
    group.over.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()
    # Its wait ends with the connection; the interpreter must not end while it is inside of JAX.
    if group.watcher is not None and group.watcher is not threading.current_thread():
        group.watcher.join(_GRACE_SECONDS)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
