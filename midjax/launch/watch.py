# SPDX-License-Identifier: Apache-2.0
"""Keeps a run going until its target is reached: looks, starts, gives back, asks again.

Nothing is remembered between two looks but how long a machine has been silent: the attempt is a
label of the queued resource, and how a run ended is a small object that worker 0 writes. So `watch`
may be killed and started again, on another machine too.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any, Literal

from midjax import log, units
from midjax.launch import exits, gcloud, gke, spec, worker
from midjax.launch import runner as runner_lib

Kind = Literal["wait", "start", "restart", "done", "stop"]
# A queued resource in these states gives no machines any more.
_LOST = ("SUSPENDED", "FAILED")
# So often in a row a restart may be refused, one poll apart, before `watch` gives up.
MOST_REFUSALS = 30


class RunEndedError(spec.LaunchError):
    """The run ended short of its target, and is not started again."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.exit_code = code if code in exits.endings() else 2


class NoAnswerError(spec.LaunchError):
    """Google Cloud did not say whether something is there: it may be, and may be asked again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What worker 0 last said of itself.

    Attributes:
      ended: whether the trainer has ended.
      code: its exit code.
      seen_seconds: when it said so, in seconds since 1970.
    """

    ended: bool
    code: int | None
    seen_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found.

    Attributes:
      resource: the queued resource; None where there is none.
      report: of the resource's attempt; None before the worker has said anything.
      stop_asked: whether `midjax launch stop` was said of this attempt.
      silent_seconds: how long an ACTIVE resource has been without a report.
      now_seconds: since 1970.
    """

    resource: gcloud.Resource | None
    report: Report | None
    stop_asked: bool
    silent_seconds: float
    now_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """What to do, and why."""

    kind: Kind
    why: str
    code: int | None = None


def decide(config: spec.Launch, look: Look) -> Action:
    """What to do after a look."""
    if look.resource is None:
        return Action(
            kind="stop", why=f"there is no queued resource {config.name}: midjax launch create"
        )
    action = _of_report(config, look) or _of_state(config, look)
    if action.kind != "restart":
        return action
    if look.stop_asked:
        return Action(kind="stop", why=f"stopped as asked: {action.why}", code=action.code)
    if look.resource.attempt - look.resource.first >= config.max_restarts:
        return Action(
            kind="stop",
            why=f"{action.why}; that was restart {config.max_restarts} of as many "
            "(Launch.max_restarts). To go on nevertheless: midjax launch create",
            code=action.code,
        )
    return action


def _of_report(config: spec.Launch, look: Look) -> Action | None:
    """What an ended trainer's code says; None where that decides nothing."""
    report, resource = look.report, look.resource
    if report is None or not report.ended or report.code is None or resource is None:
        return None
    said = f"the run ended with code {exits.text(report.code)}"
    verdict = exits.verdict(report.code)
    if verdict != "restart":
        return Action(kind=verdict, why=said, code=report.code)
    age = look.now_seconds - report.seen_seconds
    comes_back = config.backend == "qr" and resource.state == "ACTIVE" and not look.stop_asked
    if comes_back and age < config.silent_seconds:
        return Action(kind="wait", why=f"{said}; the machine may reboot and go on by itself")
    return Action(kind="restart", why=said, code=report.code)


def _of_state(config: spec.Launch, look: Look) -> Action:
    """What the queued resource's state says."""
    resource, report = look.resource, look.report
    assert resource is not None, "decide looks first"
    if resource.state in _LOST:
        return Action(kind="restart", why=f"the queued resource is {resource.state}")
    if resource.state != "ACTIVE":
        return Action(kind="wait", why=f"the queued resource is {resource.state}")
    silent = look.now_seconds - report.seen_seconds if report else look.silent_seconds
    if silent >= config.silent_seconds:
        return Action(
            kind="restart", why=f"worker 0 was not heard of for {units.human_seconds(silent)}"
        )
    if report is None and config.backend == "vm":
        return Action(kind="start", why="the machines are there, and have not begun")
    return Action(kind="wait", why="running" if report else "ACTIVE, and has not begun")


class Watch:
    """The loop.

    Args:
      config: the spec.
      runner: runs the commands.
      submit: creates attempt N; `submit(attempt, first)`.
      clock: seconds since 1970.
      sleep: waits that many seconds.
    """

    def __init__(
        self,
        config: spec.Launch,
        runner: runner_lib.Runner,
        submit: Callable[[int, int], None],
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config, self._runner, self._submit = config, runner, submit
        self._clock, self._sleep = clock, sleep
        self._active_since: tuple[int, float] | None = None
        self._pending: tuple[int, int] | None = None
        # What was decided of a slice that is still to be given back.
        self._leaving: tuple[Action, gcloud.Resource] | None = None
        self._refusals = 0
        self._said = ""

    def run(self) -> None:
        """Returns when the target is reached.

        Raises:
          RunEndedError: the run ended short of it.
        """
        while True:
            if (action := self._turn()).kind == "done":
                return
            if action.kind == "stop":
                raise RunEndedError(f"{self._config.name}: {action.why}", action.code or 2)
            self._sleep(self._config.poll_seconds)

    def _turn(self) -> Action:
        if self._pending is not None:  # the old slice is gone, and no new one was to be had
            self._resubmit()
            return Action(kind="wait", why="asked again")
        look = self.look()
        if look is None:
            return Action(kind="wait", why="nothing was to be seen")
        if look.resource is None and self._leaving is not None:
            return self._given_back(*self._leaving)  # by a command that seemed to fail
        self._leaving = None
        action = decide(self._config, look)
        self._say(action.why, look.resource)
        if look.resource is None:
            return action
        if action.kind == "start":
            self._try(gcloud.start(self._config, look.resource.attempt))
        was_asked = action.kind == "stop" and look.stop_asked  # who stopped it, deletes it
        if action.kind in ("wait", "start") or was_asked:
            return action
        # Nobody pays for a slice that does nothing: there is no end before it is given back.
        if self._try(gcloud.delete(self._config)):
            return self._given_back(action, look.resource)
        self._leaving = (action, look.resource)
        return Action(kind="wait", why="the slice could not be given back")

    def _given_back(self, action: Action, resource: gcloud.Resource) -> Action:
        """What was decided, now that nothing is paid for any more."""
        self._leaving = None
        if action.kind == "restart":
            self._pending = (resource.attempt + 1, resource.first)
            self._resubmit()
        return action

    def _resubmit(self) -> None:
        """Submits what is pending.

        Raises:
          LaunchError: it was refused too often; a moment without network is no reason to give up.
        """
        assert self._pending is not None
        try:
            self._submit(*self._pending)
        except spec.LaunchError as error:
            self._refusals += 1
            if self._refusals >= MOST_REFUSALS:
                raise
            self._say(f"trying again: {error}", None)
        else:
            self._pending, self._refusals = None, 0

    def look(self) -> Look | None:
        """One look; None where Google Cloud did not answer, which may pass."""
        done = self._runner.run(gcloud.describe(self._config).argv)
        resource = None
        if not done.code:
            resource = gcloud.parse(done.out)
        elif not gcloud.is_missing(done):
            self._say(f"no answer, trying again: {done.err.strip()[-300:]}", None)
            return None
        now, report, stopped = self._clock(), None, False
        try:
            if resource is not None:
                report = read_report(self._config, self._runner, resource.attempt)
                stopped = stop_asked(self._config, self._runner, resource.attempt)
        except NoAnswerError as error:
            self._say(f"no answer, trying again: {error}", None)
            return None
        return Look(
            resource=resource,
            report=report,
            stop_asked=stopped,
            silent_seconds=self._silent(resource, report, now),
            now_seconds=now,
        )

    def _silent(self, resource: gcloud.Resource | None, report: Report | None, now: float) -> float:
        if resource is None or resource.state != "ACTIVE" or report is not None:
            self._active_since = None
            return 0.0
        if self._active_since is None or self._active_since[0] != resource.attempt:
            self._active_since = (resource.attempt, now)
        return now - self._active_since[1]

    def _try(self, command: runner_lib.Command) -> bool:
        done = self._runner.run(command.argv)
        if done.code:
            self._say(f"{command.line}\n  failed, trying again: {done.err.strip()[-300:]}", None)
        return not done.code

    def _say(self, text: str, resource: gcloud.Resource | None) -> None:
        """Says what is new."""
        attempt = f", attempt {resource.attempt}" if resource else ""
        if (line := f"{self._config.name}{attempt}: {text}") != self._said:
            log.say(line)
            self._said = line


def watch_jobset(
    config: spec.Launch,
    runner: runner_lib.Runner,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits for a JobSet, which restarts its pods by itself.

    Raises:
      RunEndedError: it failed, was stopped, or is not there.
    """
    said = ""
    while True:
        try:
            text, completed = _look_at_jobset(config, runner)
        except NoAnswerError as error:
            text, completed = f"no answer, trying again: {error}", False
        if text != said:
            said = text
            log.say(f"{config.name}: {text}")
        if completed:
            return
        sleep(config.poll_seconds)


def _look_at_jobset(config: spec.Launch, runner: runner_lib.Runner) -> tuple[str, bool]:
    """(how it is, whether it is completed).

    Raises:
      RunEndedError: it will not complete.
      NoAnswerError: that could not be seen.
    """
    done = runner.run(gke.get(config).argv)
    if gcloud.is_missing(done):
        raise RunEndedError(f"{config.name}: there is no such JobSet: midjax launch create")
    if done.code:
        raise NoAnswerError(done.err.strip()[-300:])
    found = gke.parse(done.out)
    text = f"attempt {found.attempt}, {found.state}"
    stopped = found.state == "Suspended" and stop_asked(config, runner, found.first)
    if found.state == "Suspended" and config.queue and not stopped:
        return f"{text}: it waits in the queue {config.queue}", False
    if found.state in ("Failed", "Suspended"):
        report = read_report(config, runner, found.attempt)
        code = report.code if report and report.ended else None
        how = "" if code is None else f": the run ended with code {exits.text(code)}"
        asked = " (stopped as asked)" if stopped else ""
        raise RunEndedError(f"{config.name}: the JobSet is {found.state}{asked}{how}", code or 2)
    return text, found.state == "Completed"


def stop_place(config: spec.Launch, attempt: int) -> str:
    """Object whose presence says that an attempt was stopped on purpose."""
    return f"{worker.launch_place(config, attempt)}/stop.json"


def stop_asked(config: spec.Launch, runner: runner_lib.Runner, attempt: int) -> bool:
    """Whether `midjax launch stop` was said of an attempt that was launched.

    Raises:
      NoAnswerError: that could not be read.
    """
    return _read(runner, stop_place(config, attempt)) is not None


def _read(runner: runner_lib.Runner, place: str) -> str | None:
    """An object, or None where there is none; anything else says nothing of it.

    Raises:
      NoAnswerError: it could not be read.
    """
    done = runner.run(gcloud.cat(place).argv)
    if not done.code:
        return done.out
    if gcloud.is_missing(done):
        return None
    raise NoAnswerError(f"{place} could not be read: {done.err.strip()[-300:]}")


def read_report(config: spec.Launch, runner: runner_lib.Runner, attempt: int) -> Report | None:
    """What worker 0 of an attempt last wrote; None before it wrote anything.

    Raises:
      NoAnswerError: that could not be read.
    """
    if (text := _read(runner, worker.exit_place(config, attempt))) is None:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        return Report(
            ended=found["state"] == "ended",
            code=None if found["code"] is None else int(found["code"]),
            seen_seconds=float(found["seen"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        log.say(f"{worker.exit_place(config, attempt)} is not a report of a worker: {error!r}")
        return None
