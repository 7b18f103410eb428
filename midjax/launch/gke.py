# SPDX-License-Identifier: Apache-2.0
"""Lines of kubectl for a JobSet, and the line of xpk that would do without our own."""

import dataclasses
import json
from typing import Any

from midjax.launch import runner as runner_lib
from midjax.launch import spec

Command = runner_lib.Command


def credentials(config: spec.Launch) -> Command:
    """Lets kubectl talk to the cluster."""
    assert config.cluster is not None, "Launch refuses it"
    return Command(
        argv=(
            *("gcloud", "container", "clusters", "get-credentials", config.cluster),
            *(f"--location={config.location}", f"--project={config.project}"),
        ),
        why="lets kubectl talk to the cluster",
    )


def apply(config: spec.Launch, manifest: str) -> Command:
    """Submits the JobSet."""
    tpu = config.tpu
    return Command(
        argv=("kubectl", "apply", f"--filename={manifest}"),
        why=f"{tpu.name}: {tpu.slices} x {tpu.hosts_per_slice} pods of {tpu.chips_per_host} chips",
    )


def get(config: spec.Launch) -> Command:
    """Looks at the JobSet."""
    return Command(
        argv=("kubectl", "get", "jobset", config.name, "--output=json"),
        why="the state of the JobSet",
    )


def stop(config: spec.Launch) -> Command:
    """Ends all pods with SIGTERM. It keeps the JobSet, but in a queue of Kueue."""
    why = f"SIGTERM: the trainer saves its state, within {config.grace_seconds} s, and ends"
    if config.queue:
        return Command(
            argv=("kubectl", "delete", f"jobset/{config.name}", "--ignore-not-found"),
            why=f"{why}. Kueue would let a JobSet that is suspended by hand go on",
        )
    return Command(
        argv=(
            *("kubectl", "patch", "jobset", config.name, "--type=merge"),
            '--patch={"spec": {"suspend": true}}',
        ),
        why=why,
    )


def delete(config: spec.Launch) -> Command:
    """Deletes the JobSet and the worker script."""
    return Command(
        argv=(
            *("kubectl", "delete", f"jobset/{config.name}", f"configmap/{config.name}-worker"),
            "--ignore-not-found",
        ),
        why="deletes the JobSet; what is in the bucket stays",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSet:
    """A JobSet as it is.

    Attributes:
      state: "Completed", "Failed", "Suspended" or "Running".
      attempt: of the run, which its pods are at: every restart is one more.
      first: the attempt that it was launched as.
    """

    state: str
    attempt: int
    first: int


def parse(text: str) -> JobSet:
    """What `get` gave.

    Raises:
      LaunchError: it is no JobSet of midjax.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        status = found.get("status", {})
        true = {one["type"] for one in status.get("conditions", []) if one["status"] == "True"}
        first = int(found["metadata"]["labels"]["attempt"])
        attempt = first + int(status.get("restarts", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise spec.LaunchError(
            f"The JobSet was not created by midjax launch ({error!r}). Give the run another name."
        ) from None
    ends = ("Completed", "Failed", "Suspended")
    state = next((one for one in ends if one in true), "Running")
    return JobSet(state=state, attempt=attempt, first=first)


def xpk(config: spec.Launch, env_file: str) -> Command | None:
    """The line for a cluster made by xpk; None where there are secrets, which it would print."""
    if config.secrets:
        return None
    assert config.cluster is not None and config.image is not None, "Launch refuses it"
    tpu = config.tpu
    size = tpu.accelerator_type if tpu.has_default_torus else f"{tpu.chip.name}-{tpu.torus_name}"
    train = runner_lib.Command(argv=("midjax", *config.arguments)).line
    return Command(
        argv=(
            *("xpk", "workload", "create", f"--workload={config.name}"),
            f"--cluster={config.cluster}",
            f"--project={config.project}",
            f"--zone={config.zone}",
            f"--tpu-type={size}",
            f"--num-slices={tpu.slices}",
            f"--docker-image={config.image}",
            f"--max-restarts={config.max_restarts}",
            f"--termination-grace-period-seconds={config.grace_seconds}",
            f"--env-file={env_file}",
            # exec: xpk's own wrapper signals only what it starts itself.
            f"--command=exec {train}",
        ),
        why="the same command by xpk, which restarts on the same exit codes; logs are where xpk "
        "puts them, and midjax launch status, logs and watch do not see it",
    )
