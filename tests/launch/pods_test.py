# SPDX-License-Identifier: Apache-2.0
"""The folder tpu/: its files agree with the tables, and its scripts run what they say."""

import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import fake_cloud
import pytest

from midjax import config as config_lib
from midjax.hardware import flags, slices
from midjax.launch import pods, spec

TPU = config_lib.gin_root().parent / "tpu"
BASH = str(shutil.which("bash"))
# Writes down how it was called.
MIDJAX = f"""#!{sys.executable}
import json, os, pathlib, sys
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


def call(tmp_path, script: str, *arguments: str) -> tuple[int, list[str], dict[str, str], str]:
    """(exit code, arguments and environment that midjax got, what was complained of).

    The scripts are a copy: beside their own folder there may be a .venv with the real midjax.
    """
    shutil.copytree(TPU, tmp_path / "checkout" / "tpu")
    program = tmp_path / "midjax"
    program.write_text(MIDJAX)
    program.chmod(0o755)
    seen = tmp_path / "seen.json"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SEEN": str(seen)}
    done = subprocess.run(
        [BASH, str(tmp_path / "checkout" / "tpu" / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    got, variables = json.loads(seen.read_text()) if seen.exists() else ([], {})
    return done.returncode, got, variables, done.stderr


@pytest.mark.parametrize("name", pods.PODS)
def test_the_files_are_what_the_tables_say(name, tmp_path):
    assert (TPU / "pods" / f"{name}.env").read_text() == pods.text(name)
    code, got, seen, _ = call(tmp_path, "run.sh", name, "train", "--gin_file=a b.gin")
    assert code == 0 and got == ["train", "--gin_file=a b.gin"]
    chip = slices.parse(name).chip.name
    assert flags.parse(seen["LIBTPU_INIT_ARGS"]) == {f.name: f.value for f in flags.flags(chip)}
    assert seen["JAX_PLATFORMS"] == "tpu"
    config = fake_cloud.launch(slice=name, zone=seen["ZONE"])
    assert seen["RUNTIME_VERSION"] == config.runtime
    assert seen["ACCELERATOR_TYPE"] == config.tpu.accelerator_type
    assert {slices.parse(one).chip.name for one in pods.PODS} == set(spec.RUNTIMES)


def test_write_makes_the_whole_folder(tmp_path):
    pods.write(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in (TPU / "pods").iterdir()}


def test_every_flag_has_its_reason_above_it():
    for place in (TPU / "pods").iterdir():
        lines = place.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if line.startswith("LIBTPU_INIT_ARGS+="):
                assert before.startswith("# ") and len(before) > 30


def test_launch_is_midjax_launch_with_the_pods_slice(tmp_path):
    code, got, _, _ = call(
        tmp_path, "launch.sh", "v6e-16", "p-roject", "gs://b-1/r", "watch", "--gin.Launch.name=a"
    )
    assert code == 0 and got[0] == "launch"
    gin_files, bindings, rest = config_lib.split_argv(got[1:])
    config = config_lib.load("launch", gin_files, bindings)
    assert (config.slice, config.zone, config.project, config.bucket, config.name) == (
        *("v6e-16", "us-east5-b", "p-roject", "gs://b-1/r", "a"),
    )
    assert rest == ["watch"]


@pytest.mark.parametrize("script", ["run.sh", "launch.sh"])
def test_a_slice_without_a_file_is_told(tmp_path, script):
    code, got, _, said = call(tmp_path, script, "v5e-24", "p", "gs://b")
    assert code == 2 and not got and "v5e-256.env" in said


def test_scripts_can_be_run_and_stop_at_mistakes():
    scripts = sorted(TPU.glob("*.sh"))
    assert [path.stem for path in scripts] == ["image", "launch", "run", "setup"]
    for path in scripts:
        assert os.access(path, os.X_OK)
        text = path.read_text()
        assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
        assert subprocess.run([BASH, "-n", path], check=False).returncode == 0


def test_the_image_has_no_shell_between_and_no_root():
    lines = (TPU / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert lines.index("USER 10001") < lines.index('ENTRYPOINT ["midjax"]')
    assert any("image.revision" in line for line in lines)
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    for name in (one for line in copied for one in line):
        assert (TPU.parent / name).exists(), name


def test_the_guides_commands_are_real():
    text = (TPU / "README.md").read_text()
    actions = set(re.findall(r"^midjax launch --gin_file=my.gin (\w+)", text, flags=re.MULTILINE))
    assert actions == {"create", "watch", "status", "logs", "stop", "delete"}
    for name in re.findall(r"`((?:tpu|gin|midjax)/[\w./-]+)`", text):
        assert pathlib.Path(TPU.parent / name).exists(), name
