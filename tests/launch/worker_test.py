# SPDX-License-Identifier: Apache-2.0
"""The generated scripts, run under bash with a small trainer and a gcloud that copies files."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import fake_cloud
import pytest

from midjax.launch import exits, worker

SHELLCHECK = shutil.which("shellcheck")
BASH = shutil.which("bash")
# A trainer: says that it is there, saves on SIGTERM and exits 42, as `midjax train` does. Of its
# arguments it only writes them down. `how` is what it does otherwise.
TRAINER = """\
import json, os, pathlib, signal, sys
here = pathlib.Path({here!r})
how = {how!r}
def save(*_):
    (here / "saved").write_text("state")
    print("saved", flush=True)
    os._exit(42)
signal.signal(signal.SIGTERM, save)
(here / "arguments").write_text(json.dumps(sys.argv[1:]))
(here / "environment").write_text(json.dumps(dict(os.environ)))
print("training", flush=True)
if how != "wait":
    os._exit(int(how))
os.write(os.open(here / "ready", os.O_WRONLY), b"1")
while True:
    signal.pause()
"""
# gs://bucket/x is a folder here; secrets are their own names in capitals.
GCLOUD = """\
#!/usr/bin/env bash
if [ "$1" = secrets ]; then echo canary-of-the-secret; exit 0; fi
words=()
for word in "${@:3}"; do
  case $word in --*) ;; *) words+=("${word/#gs:\\/\\//BUCKETS/}") ;; esac
done
if [ "$2" = cp ]; then
  mkdir -p "$(dirname "${words[1]}")" && cp "${words[0]}" "${words[1]}"
fi
"""


class Machine:
    """A folder that stands for a machine: PATH, work folder, buckets, the worker script."""

    def __init__(self, folder: pathlib.Path, config, *, how: str, attempt: int = 1) -> None:
        self.folder, self.buckets = folder, folder / "buckets"
        programs = folder / "bin"
        programs.mkdir()
        self._program(programs / "gcloud", GCLOUD.replace("BUCKETS", str(self.buckets)))
        trainer = TRAINER.format(here=str(folder), how=how)
        self._program(programs / "midjax", f"#!{sys.executable}\n{trainer}")
        os.mkfifo(folder / "ready")
        self.script = folder / "worker.sh"
        text = worker.script(config, attempt)
        # The image's folder, which is not here.
        self.script.write_text(text.replace("cd /app", f"cd {shlex.quote(str(folder))}"))
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "MIDJAX_WORK": str(folder / "work"),
            "MEGASCALE_SLICE_ID": "0",
            "TPU_WORKER_ID": "0",
        }

    @staticmethod
    def _program(place: pathlib.Path, text: str) -> None:
        place.write_text(text)
        place.chmod(0o755)

    def start(self, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(BASH), str(self.script)],
            env={**self.environment, **more},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def until_it_trains(self) -> None:
        with open(self.folder / "ready", "rb") as ready:  # blocks until the trainer writes
            assert ready.read(1) == b"1"

    def read(self, place: str) -> str:
        return (self.buckets / place.removeprefix("gs://")).read_text()


@pytest.fixture
def config():
    return fake_cloud.on_gke(overrides=('Text.field=a b\'s "c"',))


def test_sigterm_reaches_the_trainer_which_saves_and_exits_42(tmp_path, config):
    machine = Machine(tmp_path, config, how="wait")
    process = machine.start()
    machine.until_it_trains()
    running = json.loads(machine.read(worker.exit_place(config, 1)))
    assert (running["state"], running["code"]) == ("running", None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 42
    assert (tmp_path / "saved").read_text() == "state"
    ended = json.loads(machine.read(worker.exit_place(config, 1)))
    assert (ended["state"], ended["code"], ended["attempt"]) == ("ended", 42, 1)
    assert machine.read(worker.log_place(config, 1)) == "training\nsaved\n"


def test_the_trainer_gets_the_laptops_arguments_and_the_chips_environment(tmp_path, config):
    machine = Machine(tmp_path, config, how="0")
    assert machine.start().wait(timeout=60) == 0
    assert tuple(json.loads((tmp_path / "arguments").read_text())) == config.arguments
    seen = json.loads((tmp_path / "environment").read_text())
    assert seen["JAX_PLATFORMS"] == "tpu" and seen["PYTHONUNBUFFERED"] == "1"
    assert seen["LIBTPU_INIT_ARGS"].split() == [flag.text for flag in config.flags]


@pytest.mark.parametrize("code", [0, 3, 42, 127, 134, 170])
def test_the_trainers_code_is_the_scripts_and_is_reported(tmp_path, config, code):
    machine = Machine(tmp_path, config, how=str(code))
    assert machine.start().wait(timeout=60) == code
    assert json.loads(machine.read(worker.exit_place(config, 1)))["code"] == code


def test_a_trainer_that_is_killed_is_reported(tmp_path, config):
    machine = Machine(tmp_path, config, how="wait")
    process = machine.start()
    machine.until_it_trains()
    (trainer,) = children(process.pid, "midjax")
    os.kill(trainer, signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    assert json.loads(machine.read(worker.exit_place(config, 1)))["code"] == 137


def children(pid: int, program: str) -> list[int]:
    """Child processes that run a program, as Linux lists them: it is a child itself, by `exec`."""
    listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(one)
        for one in listed
        if f"/{program}\0" in pathlib.Path(f"/proc/{one}/cmdline").read_text()
    ]


def test_other_workers_and_restarts_have_places_of_their_own(tmp_path, config):
    machine = Machine(tmp_path, config, how="0")
    restarted = {"MIDJAX_RESTART": "2", "TPU_WORKER_ID": "3", "MEGASCALE_SLICE_ID": "1"}
    assert machine.start(**restarted).wait(timeout=60) == 0
    found = json.loads(machine.read(f"{config.place}/exit/3-1-3.json"))
    assert (found["attempt"], found["worker"]) == (3, "1-3")
    assert machine.read(worker.log_place(config, 3, "1-3")) == "training\n"
    assert not (machine.buckets / "my-bucket/runs/anneal/exit/3.json").exists()


def test_a_worker_that_cannot_be_set_up_says_so_and_may_be_tried_again(tmp_path):
    config = fake_cloud.launch()  # installs the code, which nobody uploaded
    machine = Machine(tmp_path, config, how="0")
    assert machine.start().wait(timeout=60) == 172
    assert not (tmp_path / "arguments").exists()
    assert json.loads(machine.read(worker.exit_place(config, 1)))["code"] == 172


def test_secrets_are_read_on_the_worker_and_stand_in_no_script():
    config = fake_cloud.launch(secrets={"WANDB_API_KEY": "wandb-key"}, image="eu.pkg.dev/p/r/i:1")
    text = worker.script(config, 1)
    assert "gcloud secrets versions access latest --secret=wandb-key --project=my-project" in text
    assert "--env=WANDB_API_KEY " in text and "--env=LIBTPU_INIT_ARGS " in text
    assert "export WANDB_API_KEY\n" in text
    assert "--env=MEGASCALE_COORDINATOR_ADDRESS" in text  # passed on where the machine has it


def test_the_unit_gets_its_signal_and_its_time():
    config = fake_cloud.launch(grace_seconds=90)
    text = worker.start_script(config, 3)
    assert "--property=KillMode=mixed --property=TimeoutStopSec=90" in text
    assert "gs://my-bucket/runs/anneal/launch/3/worker.sh" in text
    assert f"systemctl is-active --quiet {worker.unit(config)}; then exit 0" in text


@pytest.mark.parametrize("backend", ["vm", "qr"])
def test_a_unit_that_a_machine_starts_comes_back_with_the_others(tmp_path, backend):
    """The script is run with a systemd-run that writes its arguments down."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in (
        ("gcloud", "exit 0"),
        ("systemctl", "exit 1"),
        ("systemd-run", f'printf "%s\\n" "$@" >{tmp_path}/arguments'),
    ):
        Machine._program(programs / name, f"#!/bin/sh\n{line}\n")
    text = worker.start_script(fake_cloud.launch(backend=backend), 3)
    for place in ("/opt/midjax", "/sys/kernel/mm/transparent_hugepage/enabled"):
        assert place in text
        text = text.replace(place, f"{tmp_path}/{pathlib.Path(place).name}")
    (tmp_path / "start.sh").write_text(text)
    subprocess.run(
        [str(BASH), tmp_path / "start.sh"],
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        check=True,
    )
    properties = dict(
        line.removeprefix("--property=").split("=", 1)
        for line in (tmp_path / "arguments").read_text().splitlines()
        if line.startswith("--property=")
    )
    assert properties["KillMode"] == "mixed"
    if backend == "vm":
        assert not any("Restart" in name for name in properties)
        return
    assert properties["Restart"] == "on-failure" and int(properties["RestartSec"]) > 0
    # What `watch` takes for an end is one for the machine too; all else comes back.
    down = set(map(int, properties["RestartPreventExitStatus"].split()))
    assert {1, 2, 4, 5} <= down and not down & {42, 134, 137, 143, 172}
    assert all(exits.verdict(code) == "stop" for code in down)
    assert int(properties["StartLimitBurst"]) < 10 and properties["StartLimitIntervalSec"] == "1d"


def test_a_worker_that_comes_back_goes_on_in_its_attempt(tmp_path, config):
    machine = Machine(tmp_path, config, how="134")
    assert machine.start().wait(timeout=60) == 134
    assert json.loads(machine.read(worker.exit_place(config, 1)))["code"] == 134
    program = tmp_path / "bin" / "midjax"
    Machine._program(program, program.read_text().replace("how = '134'", "how = '0'"))
    assert machine.start().wait(timeout=60) == 0
    ended = json.loads(machine.read(worker.exit_place(config, 1)))
    assert (ended["code"], ended["attempt"]) == (0, 1)
    assert machine.read(worker.log_place(config, 1)) == "training\ntraining\n"


@pytest.mark.parametrize(
    "config",
    [
        fake_cloud.launch(secrets={"WANDB_API_KEY": "wandb-key"}, env={"A": "it's"}),
        fake_cloud.launch(slice="2xv6e-256", image="eu.pkg.dev/p/r/i:1", backend="qr"),
        fake_cloud.on_gke(overrides=("Text.field=a b's $(c)",)),
    ],
    ids=["code", "image", "gke"],
)
def test_scripts_are_sound_bash(config, tmp_path):
    for name, text in (
        ("worker.sh", worker.script(config, 1)),
        ("start.sh", worker.start_script(config, 1)),
    ):
        place = tmp_path / name
        place.write_text(text)
        assert subprocess.run([str(BASH), "-n", place], check=False).returncode == 0
        if SHELLCHECK:  # `make check-launch` has it in any case
            done = subprocess.run([SHELLCHECK, place], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
