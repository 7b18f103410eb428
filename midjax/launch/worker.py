# SPDX-License-Identifier: Apache-2.0
"""The two shell scripts of a run: what every worker runs, and what starts that as a unit.

The trainer is a child that the worker script waits for. It writes to a file, not to a pipe, so no
other process stands between it and its signals, and its own exit code is the one that is reported.
A background loop copies the log; nothing waits for it while the trainer runs.
"""

import shlex

from midjax.launch import environment, exits, spec

CONTAINER = "midjax"
_ROOT = "/opt/midjax"
_COPY_SECONDS = 60
# A unit that comes back does so after so many seconds, and starts at most so often a day: what
# fails every time is left down, and `watch`, which counts restarts, sees it.
_BACK_SECONDS = 30
_STARTS_A_DAY = 5

# What a worker says of itself, as JSON: {"state", "code", "seen", ...}.
_REPORTING = """\
# Uploads a file: with gcloud on a TPU machine, with midjax's own reader of buckets in an image.
put() {
  if command -v gcloud >/dev/null 2>&1; then
    gcloud storage cp "$1" "$2" --quiet >/dev/null 2>&1
  else
    python3 -c 'import pathlib, sys
from midjax import files
files.write_bytes(sys.argv[2], pathlib.Path(sys.argv[1]).read_bytes())' "$1" "$2"
  fi
}

metadata() {
  curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# GKE says in variables which worker this is, the Cloud TPU API in metadata.
worker=${TPU_WORKER_ID:-$(metadata agent-worker-number)} || worker=
worker=${worker:-0}
number="s/^MEGASCALE_SLICE_ID: *'\\([0-9]*\\)'.*/\\1/p"
slice=${MEGASCALE_SLICE_ID:-$(metadata tpu-env | sed -n "$number")} || slice=
slice=${slice:-0}
who=$slice-$worker
log=$work/$attempt-$who.log
status=$work/$attempt-$who.json
if [ "$who" = 0-0 ]; then
  status_place=$place/exit/$attempt.json
else
  status_place=$place/exit/$attempt-$who.json
fi
began=$(date +%s)

# report STATE CODE: first the few bytes that decide about a restart, for time may be short.
report() {
  printf '{"state": "%s", "code": %s, "attempt": %s, "worker": "%s", "began": %s, "seen": %s}\\n' \\
    "$1" "$2" "$attempt" "$who" "$began" "$(date +%s)" >"$status"
  put "$status" "$status_place"
}

uploads() {
  local nap=
  trap '[ -n "$nap" ] && kill "$nap"; exit 0' TERM
  while :; do
    sleep "$every" &
    nap=$!
    wait "$nap"
    put "$log" "$place/logs/$attempt/$who.log"
    report running null
  done
}
"""

_RUNNING = """\
# SIGTERM may come at any time: of spot capacity that goes, of maintenance, of `midjax launch stop`.
trainer='' asked=0 interrupted=0
# shellcheck disable=SC2317,SC2329  # the trap calls it
pass_on() {
  asked=1 interrupted=1
  if [ -n "$trainer" ]; then kill -TERM "$trainer" 2>/dev/null; fi
}
trap pass_on TERM INT

: >>"$log"
report running null
uploads >/dev/null 2>&1 &
uploader=$!

# `exec`: the process that is waited for, and that gets the signals, becomes the trainer itself.
(set_up || exit 172; exec "${command[@]}") >>"$log" 2>&1 &
trainer=$!
if [ "$asked" = 1 ]; then kill -TERM "$trainer" 2>/dev/null; fi
# A signal ends `wait` early with a code that is not the trainer's: then wait again.
interrupted=0
wait "$trainer"
code=$?
while [ "$interrupted" = 1 ]; do
  interrupted=0
  before=$code
  wait "$trainer"
  code=$?
  # Waited for already: the signal came after the trainer's own end.
  if [ "$code" = 127 ]; then code=$before; fi
done

kill -TERM "$uploader" 2>/dev/null
wait "$uploader" 2>/dev/null
report ended "$code"
put "$log" "$place/logs/$attempt/$who.log"
exit "$code"
"""


def script(config: spec.Launch, attempt: int) -> str:
    """What each worker runs, for whichever backend.

    Args:
      config: the spec.
      attempt: from 1; later ones are restarts of the same run.
    """
    head = [
        "#!/usr/bin/env bash",
        f"# One worker of {config.name} on {config.tpu.name}, attempt {attempt}: written by midjax",
        "# launch. The run is the last command; the same line trains on a laptop.",
        "set -uo pipefail",
        "",
        f"place={shlex.quote(config.place)}",
        # JobSet restarts by itself, and counts; nobody else sets the variable.
        f"attempt=$(({attempt} + ${{MIDJAX_RESTART:-0}}))",
        f"work=${{MIDJAX_WORK:-{_ROOT}/{config.name}}}",
        f"every=${{MIDJAX_COPY_SECONDS:-{_COPY_SECONDS}}}",
        'mkdir -p "$work"',
        # systemd sets neither.
        'export HOME="${HOME:-/root}" PATH="$PATH:/snap/bin"',
        "",
    ]
    for variable in environment.fixed(config):
        head += [f"# {variable.why}", f"export {variable.name}={shlex.quote(variable.value)}"]
    set_up, command = _of_backend(config)
    return "\n".join(
        [
            *head,
            "",
            "set_up() {",
            *set_up,
            "}",
            "# shellcheck disable=SC2016  # words of the recipe, taken as they stand",
            f"command=({command})",
            "",
            _REPORTING,
            _RUNNING,
        ]
    )


def _of_backend(config: spec.Launch) -> tuple[list[str], str]:
    """(lines of the function that sets a worker up, the words of the command)."""
    train = shlex.join(config.arguments)
    if config.backend == "gke":  # the container has everything, secrets too
        return ["  cd /app || return"], f"midjax {train}"
    secrets = [
        line
        for name, secret in config.secrets.items()
        for line in (
            f"  {name}=$(gcloud secrets versions access latest --secret={secret} "
            f"--project={config.project}) || return",
            f"  export {name}",
        )
    ]
    if config.image:
        host = config.image.partition("/")[0]
        names = (*(v.name for v in environment.fixed(config)), *config.secrets)
        passed = " ".join(f"--env={name}" for name in (*names, *environment.PASSED_ON))
        login = f"  gcloud auth configure-docker {shlex.quote(host)} --quiet || return"
        pull = f"  docker pull --quiet {shlex.quote(config.image)}"
        # --init: somebody has to bury the processes that read data.
        run = (
            "docker run --rm --init --privileged --net=host --shm-size=16g "
            f"--stop-timeout={config.grace_seconds} {passed} {shlex.quote(config.image)} {train}"
        )
        return [*secrets, login, pull], run
    install = [
        '  gcloud storage cp "$place/launch/$attempt/code.tgz" "$work/code.tgz" --quiet || return',
        '  mkdir -p "$work/code" && tar -xzf "$work/code.tgz" -C "$work/code" || return',
        '  cd "$work/code" || return',
        '  bash tpu/setup.sh "$work/venv"',
    ]
    return [*secrets, *install], f'"$work/venv/bin/midjax" {train}'


def unit(config: spec.Launch) -> str:
    """Name of the systemd unit on each worker."""
    return f"midjax-{config.name}"


def start_script(config: spec.Launch, attempt: int) -> str:
    """What a machine runs, as root, to start the worker script as a unit of its own.

    Run twice it starts it once. The unit outlives the ssh session or the startup script that made
    it, and is stopped with SIGTERM, and time to save, before the network goes.
    """
    name = unit(config)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Starts {config.name}, attempt {attempt}, on a machine: written by midjax launch.",
            "set -euo pipefail",
            'export PATH="$PATH:/snap/bin"',
            f"if systemctl is-active --quiet {name}; then exit 0; fi",
            f"systemctl reset-failed {name} 2>/dev/null || true",
            "# libtpu asks for huge pages; without them it is slower to start",
            "echo always >/sys/kernel/mm/transparent_hugepage/enabled || true",
            f"mkdir -p {_ROOT}/{config.name}",
            f"gcloud storage cp {shlex.quote(launch_place(config, attempt))}/worker.sh "
            f"{_ROOT}/{config.name}/worker.sh --quiet",
            f"exec systemd-run --unit={name} --property=KillMode=mixed "
            f"--property=TimeoutStopSec={config.grace_seconds} "
            "--property=After=network-online.target --property=LimitNOFILE=1048576 "
            f"--property=LimitMEMLOCK=infinity {_coming_back(config)}"
            f"bash {_ROOT}/{config.name}/worker.sh",
            "",
        ]
    )


def _coming_back(config: spec.Launch) -> str:
    """Properties of the unit of "qr", whose machines start it when they boot.

    Where one of several machines reboots, the trainers of the others lose it and end: they have to
    start again too, all in the same attempt. `systemctl stop` is no failure, and ends it for good.
    """
    if config.backend != "qr":
        return ""
    ends = [str(code) for code in exits.endings()]
    return (
        f"--property=Restart=on-failure --property=RestartSec={_BACK_SECONDS} "
        f"--property=RestartPreventExitStatus={shlex.quote(' '.join(ends))} "
        f"--property=StartLimitIntervalSec=1d --property=StartLimitBurst={_STARTS_A_DAY} "
    )


def launch_place(config: spec.Launch, attempt: int) -> str:
    """Folder in the bucket of what an attempt was launched with."""
    return f"{config.place}/launch/{attempt}"


def exit_place(config: spec.Launch, attempt: int) -> str:
    """Where worker 0 of slice 0 says how it is, and with which code it ended."""
    return f"{config.place}/exit/{attempt}.json"


def log_place(config: spec.Launch, attempt: int, who: str = "0-0") -> str:
    """Copy of a worker's log; `who` is slice-worker."""
    return f"{config.place}/logs/{attempt}/{who}.log"
