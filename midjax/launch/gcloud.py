# SPDX-License-Identifier: Apache-2.0
"""Lines of gcloud for queued resources: create, start, look, stop, delete."""

import dataclasses
import json
import re
import shlex
from typing import Any

from midjax.launch import runner as runner_lib
from midjax.launch import spec, worker

Command = runner_lib.Command
_QUEUED = ("gcloud", "compute", "tpus", "queued-resources")
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# How gcloud and kubectl say that what they were asked about does not exist. A bare 404 or "not
# found" is in other failures too: an address of an object in memory, a file of credentials.
_MISSING = re.compile(
    r"\bNOT_FOUND\b|\(NotFound\)|\bmatched no objects\b|\bnot found: 404\b"
    r"|\b(HTTP(Error)?|code|status)\W{1,3}404\b|\bresource '[^'\n]*' was not found\b",
    flags=re.ASCII | re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resource:
    """A queued resource as it is.

    Attributes:
      state: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED, ...
      attempt: of the run, which it was created for.
      first: attempt that somebody asked for; those after it are restarts.
    """

    state: str
    attempt: int
    first: int


def _where(config: spec.Launch) -> tuple[str, ...]:
    return (f"--zone={config.zone}", f"--project={config.project}")


def bundle(config: spec.Launch, target: str) -> Command:
    """Packs the last commit of the code."""
    return Command(
        argv=("git", "-C", config.code, "archive", "--format=tar.gz", f"--output={target}", "HEAD"),
        why="the last commit, which is what the workers install",
    )


def upload(config: spec.Launch, files: list[str], attempt: int) -> Command:
    """Copies what an attempt needs into the bucket."""
    place = worker.launch_place(config, attempt)
    return Command(
        argv=("gcloud", "storage", "cp", *files, f"{place}/", "--quiet"),
        why="what the workers run, kept beside the run",
    )


def create(config: spec.Launch, attempt: int, first: int, startup: str | None) -> Command:
    """Asks for the slice.

    Args:
      config: the spec.
      attempt: of the run.
      first: the attempt that somebody asked for.
      startup: file of a script that every machine runs each time it boots.
    """
    labels = {**config.all_labels, "attempt": str(attempt), "first": str(first)}
    nodes = [f"--node-id={config.name}"]
    if config.tpu.slices > 1:
        nodes = [f"--node-count={config.tpu.slices}", f"--node-prefix={config.name}"]
    argv = [
        *(*_QUEUED, "create", config.name, *nodes, *_where(config)),
        f"--accelerator-type={config.tpu.accelerator_type}",
        f"--runtime-version={config.runtime}",
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        f"--scopes={_SCOPE}",
    ]
    if config.spot:
        argv.append("--spot")
    if config.service_account:
        argv.append(f"--service-account={config.service_account}")
    if config.valid_until:
        argv.append(f"--valid-until-duration={config.valid_until}")
    if startup:
        argv.append(f"--metadata-from-file=startup-script={startup}")
    tpu = config.tpu
    return Command(
        argv=(*argv, "--async"),
        why=f"{tpu.name}: {tpu.chips} chips, {tpu.hosts} machines, attempt {attempt}",
    )


def describe(config: spec.Launch) -> Command:
    """Looks at the queued resource."""
    return Command(
        argv=(*_QUEUED, "describe", config.name, *_where(config), "--format=json"),
        why="the state of the queued resource",
    )


def parse(text: str) -> Resource:
    """What `describe` gave.

    Raises:
      LaunchError: it is not what a queued resource of midjax looks like.
    """
    try:
        found: Any = json.loads(text)
        labels = found["tpu"]["nodeSpec"][0]["node"].get("labels", {})
        attempt = int(labels["attempt"])
        return Resource(state=found["state"]["state"], attempt=attempt, first=int(labels["first"]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise spec.LaunchError(
            f"The queued resource was not created by midjax launch ({error!r}): its labels say "
            "nothing of an attempt. Give the run another name, or delete it."
        ) from None


def _on_all(config: spec.Launch, command: str, why: str) -> Command:
    """Runs a command on every machine of every slice."""
    return Command(
        argv=(
            *(*_QUEUED, "ssh", config.name, *_where(config)),
            *("--node=all", "--worker=all", f"--command={command}", "--quiet"),
        ),
        why=why,
    )


def start(config: spec.Launch, attempt: int) -> Command:
    """Starts the unit; one that runs already goes on."""
    place = shlex.quote(f"{worker.launch_place(config, attempt)}/start.sh")
    return _on_all(
        config,
        # Without pipefail a script that cannot be read would look like one that ran.
        f"set -o pipefail; gcloud storage cat {place} | sudo bash",
        "starts the run on every machine as a unit that outlives this connection",
    )


def stop(config: spec.Launch) -> Command:
    """Ends the unit with SIGTERM."""
    return _on_all(
        config,
        f"sudo systemctl stop {worker.unit(config)}",
        f"SIGTERM: the trainer saves its state, within {config.grace_seconds} s, and ends",
    )


def delete(config: spec.Launch) -> Command:
    """Gives the slice back. Waits, so that the name is free afterwards."""
    return Command(
        argv=(*_QUEUED, "delete", config.name, *_where(config), "--force", "--quiet"),
        why="gives the slice back; what is in the bucket stays",
    )


def cat(place: str, why: str = "") -> Command:
    """Reads an object."""
    return Command(argv=("gcloud", "storage", "cat", place), why=why)


def attempts(config: spec.Launch, folder: str = "launch") -> Command:
    """Lists the attempts that have something in a folder of the run."""
    return Command(
        argv=("gcloud", "storage", "ls", f"{config.place}/{folder}/"),
        why="which attempts there were",
    )


def listing(place: str) -> Command:
    """Asks whether a folder in a bucket is there."""
    return Command(argv=("gcloud", "storage", "ls", place), why="the run reads it")


def is_missing(done: runner_lib.Done) -> bool:
    """Whether a command failed because what it asks for does not exist."""
    return done.code != 0 and _MISSING.search(done.err) is not None
