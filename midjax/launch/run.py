# SPDX-License-Identifier: Apache-2.0
"""What `midjax launch` does: create, watch, status, logs, stop, delete; or prints its commands."""

import re
import time
from collections.abc import Callable, Sequence

from midjax import files, log, units
from midjax.launch import (
    emit,
    environment,
    exits,
    gcloud,
    gke,
    jobset,
    jobset_check,
    region,
    spec,
    watch,
    worker,
)
from midjax.launch import runner as runner_lib

ACTIONS = ("create", "watch", "status", "logs", "stop", "delete")
Command = runner_lib.Command
# Of an attempt: a folder of launch/ or logs/, or what a worker said in exit/.
_ATTEMPT = re.compile(r"(\d+)(?:(?:-\d+-\d+)?\.json)?", flags=re.ASCII)


def programs(config: spec.Launch) -> tuple[str, ...]:
    """Programs that have to be there to run anything."""
    return ("gcloud", "kubectl") if config.backend == "gke" else ("gcloud",)


class Session:
    """One call of `midjax launch`.

    Args:
      config: the spec.
      runner: runs commands.
      reads: places in buckets that the run reads: `create` asks whether they are there.
      clock, sleep: of the machine.
      say: prints one text.
    """

    def __init__(
        self,
        config: spec.Launch,
        runner: runner_lib.Runner,
        *,
        reads: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = log.say,
    ) -> None:
        environment.check(config)
        self._config, self._runner = config, runner
        self._clock, self._sleep, self._say = clock, sleep, say
        self._places = tuple(reads)
        self._folder = f"{config.folder}/{config.name}"

    def print_commands(self, action: str) -> str:
        """What `action` would run, for attempt 1, as a script; writes the files that it names."""
        config, attempt = self._config, 1
        commands: list[Command] = []
        if action == "create":
            listed = map(gcloud.listing, self._places)
            commands = [
                *region.commands(config, self._places),
                *listed,
                *self._submission(attempt, attempt),
            ]
            if config.backend == "vm":
                commands += [gcloud.describe(config), gcloud.start(config, attempt)]
        elif action == "watch":
            commands = self._looks(attempt)
            if config.backend != "gke":  # a JobSet restarts by itself
                commands += [gcloud.delete(config), *self._submission(attempt + 1, attempt)]
        elif action == "status":
            commands = self._looks(attempt)
        elif action == "logs":
            log_of = gcloud.cat(worker.log_place(config, attempt), "the log of worker 0")
            commands = [*self._listings(), log_of]
        elif action == "stop":
            commands = self._stopping(attempt)
        elif action == "delete":
            commands = self._deleting()
        text = runner_lib.script(commands)
        if action == "create" and config.backend == "gke":
            line = gke.xpk(config, f"{self._folder}/xpk.env")
            reason = "xpk would print the secrets, so this run has no line for it"
            return f"{text}\n\n# or:\n{runner_lib.script([line]) if line else f'# {reason}'}"
        return text

    def create(self) -> None:
        """Asks for the slice, and starts the run when it is there.

        Raises:
          LaunchError: a command failed; the bucket is elsewhere; what the run reads is not there;
            there is a run of this name.
        """
        config = self._config
        for text in region.check(config, self._runner, self._places):
            self._say(text)
        for place in self._places:
            if self._there(gcloud.listing(place)) is None:
                raise spec.LaunchError(
                    f"{place} does not exist, and the run would read it: copy it there, "
                    "or name another place in Launch.overrides."
                )
        on_gke = config.backend == "gke"
        if on_gke:
            runner_lib.must(self._runner, gke.credentials(config))
        if self._there(gke.get(config) if on_gke else gcloud.describe(config)) is not None:
            raise spec.LaunchError(
                f"There is a {'JobSet' if on_gke else 'queued resource'} {config.name} already: "
                "midjax launch status shows it. Delete it and create goes on with the run; or give "
                "this one another name."
            )
        self._check_code()
        attempt = self._last_attempt() + 1
        self._submit(attempt, attempt)
        if config.backend == "vm":
            self._wait_for_machines()
            runner_lib.must(self._runner, gcloud.start(config, attempt))
            self._say(f"{config.name} runs on {config.tpu.hosts} machines")
        self._say("midjax launch ... watch starts it again after a preemption; status, logs, stop")

    def watch(self) -> None:
        """Until the target is reached.

        Raises:
          RunEndedError: the run ended short of it.
        """
        try:
            if self._config.backend == "gke":
                runner_lib.must(self._runner, gke.credentials(self._config))
                watch.watch_jobset(self._config, self._runner, self._sleep)
            else:
                watch.Watch(
                    self._config, self._runner, self._submit, clock=self._clock, sleep=self._sleep
                ).run()
        except KeyboardInterrupt:
            self._say(f"{self._config.name} goes on, and nobody watches it: midjax launch watch")
            return
        self._say(f"{self._config.name}: {exits.MEANINGS[0]}")

    def status(self) -> None:
        """Prints the state of the slice, and what worker 0 last said."""
        config = self._config
        on_gke = config.backend == "gke"
        if on_gke:
            runner_lib.must(self._runner, gke.credentials(config))
        text = self._there(gke.get(config) if on_gke else gcloud.describe(config))
        found: gke.JobSet | gcloud.Resource | None = None
        if text is not None:
            found = gke.parse(text) if on_gke else gcloud.parse(text)
        attempt = found.attempt if found else self._last_attempt()
        state = f"{found.state}, attempt {attempt}" if found else "there is none"
        self._say(f"{'JobSet' if on_gke else 'queued resource'} {config.name}: {state}")
        report = watch.read_report(config, self._runner, attempt) if attempt else None
        if report is None:
            self._say("worker 0 has not said anything")
        elif report.ended and report.code is not None:
            self._say(f"the run ended with code {exits.text(report.code)}")
        else:
            age = units.human_seconds(max(self._clock() - report.seen_seconds, 0))
            self._say(f"running; worker 0 was heard of {age} ago")
        if attempt:
            self._say(f"log: {worker.log_place(config, attempt)}")

    def logs(self, who: str = "0-0") -> None:
        """Prints the copy of a worker's log in the bucket."""
        attempt = self._last_attempt()
        if not attempt:
            raise spec.LaunchError(f"{self._config.place} holds no run: midjax launch create.")
        if self._config.backend == "gke":
            found = self._there(gke.get(self._config))
            attempt = attempt if found is None else gke.parse(found).attempt
        place = worker.log_place(self._config, attempt, who)
        self._say(runner_lib.must(self._runner, gcloud.cat(place)).out)

    def stop(self) -> None:
        """SIGTERM to the trainers; what they saved is gone on with by the next `create`."""
        # The attempt that was launched: `watch` knows it of JobSets that have restarted, too.
        attempt = max(self._newest(gcloud.attempts(self._config)), 1)
        for command in self._stopping(attempt):
            runner_lib.must(self._runner, command)
        if self._config.backend == "gke":
            self._say("stopped; to go on: midjax launch ... delete, then create")
        else:
            self._say(
                "stopped; the slice is still there, and is paid for: midjax launch ... delete"
            )

    def delete(self) -> None:
        """Gives the slice back."""
        for command in self._deleting():
            runner_lib.must(self._runner, command)

    def _submit(self, attempt: int, first: int) -> None:
        for command in self._submission(attempt, first):
            self._say(f"{command.line}")
            runner_lib.must(self._runner, command)

    def _submission(self, attempt: int, first: int) -> list[Command]:
        """Writes the files of an attempt; the commands that submit it."""
        config = self._config
        script = self._write("worker.sh", worker.script(config, attempt))
        if config.backend == "gke":
            documents = jobset.documents(config, attempt)
            jobset_check.check(config, documents[1])
            manifest = self._write("jobset.yaml", emit.texts(documents))
            self._write("xpk.env", jobset.env_file(config))
            return [
                gcloud.upload(config, [manifest, script], attempt),
                gke.credentials(config),
                gke.apply(config, manifest),
            ]
        start = self._write("start.sh", worker.start_script(config, attempt))
        commands, uploads = [], [script, start]
        if config.image is None:
            target = f"{self._folder}/code.tgz"
            commands.append(gcloud.bundle(config, str(files.path(target).resolve())))
            uploads.append(target)
        startup = start if config.backend == "qr" else None
        return [
            *commands,
            gcloud.upload(config, uploads, attempt),
            gcloud.create(config, attempt, first, startup),
        ]

    def _write(self, name: str, text: str) -> str:
        place = f"{self._folder}/{name}"
        files.write_text(place, text)
        return place

    def _looks(self, attempt: int) -> list[Command]:
        report = gcloud.cat(worker.exit_place(self._config, attempt), "what worker 0 last said")
        if self._config.backend == "gke":
            return [gke.credentials(self._config), gke.get(self._config), report]
        return [gcloud.describe(self._config), report]

    def _stopping(self, attempt: int) -> list[Command]:
        config = self._config
        note = self._write("stop.json", '{"stop": "asked for"}\n')
        told = Command(
            argv=("gcloud", "storage", "cp", note, watch.stop_place(config, attempt), "--quiet"),
            why="tells `watch` not to start it again",
        )
        if config.backend == "gke":
            return [told, gke.credentials(config), gke.stop(config)]
        return [told, gcloud.stop(config)]

    def _deleting(self) -> list[Command]:
        if self._config.backend == "gke":
            return [gke.credentials(self._config), gke.delete(self._config)]
        return [gcloud.delete(self._config)]

    def _check_code(self) -> None:
        """The last commit has the recipe; what is not committed is said."""
        if self._config.image is not None:
            return
        git = ("git", "-C", self._config.code)
        runner_lib.must(
            self._runner,
            Command(argv=(*git, "ls-files", "--error-unmatch", "--", self._config.recipe)),
        )
        changed = runner_lib.must(self._runner, Command(argv=(*git, "status", "--porcelain"))).out
        if changed.strip():
            self._say(f"not in the commit, so not on the machines:\n{changed.rstrip()}")

    def _listings(self) -> list[Command]:
        """What lists all attempts. JobSet's own restarts were not launched, and left traces."""
        folders = ("launch", "exit", "logs") if self._config.backend == "gke" else ("launch",)
        return [gcloud.attempts(self._config, folder) for folder in folders]

    def _last_attempt(self) -> int:
        """The newest attempt that there was; 0 of none."""
        return max(self._newest(listing) for listing in self._listings())

    def _newest(self, listing: Command) -> int:
        names = [
            line.rstrip("/").rpartition("/")[2]
            for line in (self._there(listing) or "").splitlines()
        ]
        return max(
            (int(found[1]) for name in names if (found := _ATTEMPT.fullmatch(name))), default=0
        )

    def _there(self, command: Command) -> str | None:
        """What a command says of something; None where that does not exist.

        Raises:
          LaunchError: it failed otherwise, which says nothing of whether it exists.
        """
        done = self._runner.run(command.argv)
        if done.code and not gcloud.is_missing(done):
            raise spec.LaunchError(f"{command.line}\n{done.err.strip()}")
        return None if done.code else done.out

    def _wait_for_machines(self) -> None:
        """Until the queued resource is ACTIVE; `watch` could do the same later."""
        said = ""
        while True:
            done = runner_lib.must(self._runner, gcloud.describe(self._config))
            state = gcloud.parse(done.out).state
            if state == "ACTIVE":
                return
            if state in ("FAILED", "SUSPENDED"):
                raise spec.LaunchError(
                    f"The queued resource {self._config.name} is {state}: no machines. `midjax "
                    "launch ... watch` asks again, up to Launch.max_restarts times."
                )
            if state != said:
                self._say(f"{self._config.name}: {state}")
                said = state
            self._sleep(self._config.poll_seconds)
