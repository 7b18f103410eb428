# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess

import fake_cloud
import pytest

from midjax.launch import gcloud, run, runner, spec, worker

GCLOUD = shutil.which("gcloud")
CONFIGS = {
    "vm": fake_cloud.launch(
        slice="2xv5p-128",
        labels={"team": "a"},
        service_account="trainer@my-project.iam.gserviceaccount.com",
        valid_until="6h",
        secrets={"WANDB_API_KEY": "wandb-key"},
    ),
    "qr": fake_cloud.launch(backend="qr", slice="v6e-16", image="eu.pkg.dev/p/r/i:1", spot=False),
    "gke": fake_cloud.on_gke(slice="v4-128", cluster_location="us-west4-b"),
}


def printed(folder: pathlib.Path) -> list[str]:
    """Every line of gcloud that any action of any backend prints, or has a machine run."""
    lines: list[str] = []
    for config in CONFIGS.values():
        session = run.Session(dataclasses.replace(config, folder=str(folder)), fake_cloud.Cloud())
        for action in run.ACTIONS:
            text = session.print_commands(action)
            lines += [line for line in text.splitlines() if line.startswith("gcloud ")]
        scripts = worker.script(config, 1) + worker.start_script(config, 1)
        found = re.findall(r"gcloud (?:storage|secrets|auth) [^|>&)\n]*", scripts)
        lines += [line.strip() for line in found]
    return list(dict.fromkeys(lines))


def lint(lines: list[str], folder: pathlib.Path) -> dict[str, str | None]:
    """Line -> what gcloud's own linter says against it."""
    commands = folder / "lines.json"
    commands.write_text(json.dumps([{"command_string": line} for line in lines]))
    done = subprocess.run(
        [str(GCLOUD), "meta", "lint-gcloud-commands", f"--commands-file={commands}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(lines)
    return {
        line: None if one["success"] else one["error_message"]
        for line, one in zip(lines, found, strict=True)
    }


@pytest.mark.skipif(not GCLOUD, reason="gcloud is not installed, so its linter is not either")
def test_every_printed_line_passes_gclouds_linter(tmp_path):
    lines = printed(tmp_path)
    for verb in (
        *("storage cp", "storage cat", "storage ls", "storage buckets describe"),
        *(f"compute tpus queued-resources {name}" for name in ("create", "ssh", "delete")),
        *("container clusters get-credentials", "secrets versions access", "auth configure-docker"),
    ):
        assert any(line.startswith(f"gcloud {verb} ") for line in lines), verb
    wrong = lines[0].replace("--format", "--fromat")
    said = lint([*lines, wrong], tmp_path)
    assert said.pop(wrong)  # it does find mistakes
    assert not {line: text for line, text in said.items() if text}
    # And as one line by itself, which is how people would ask it.
    done = subprocess.run(
        [str(GCLOUD), "meta", "lint-gcloud-commands", f"--command-string={lines[1]}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert json.loads(done.stdout)[0]["success"]


def test_create_in_full():
    command = gcloud.create(CONFIGS["vm"], 3, 2, None)
    assert command.argv == (
        *("gcloud", "compute", "tpus", "queued-resources", "create", "anneal"),
        *("--node-count=2", "--node-prefix=anneal"),
        *("--zone=us-west4-a", "--project=my-project"),
        "--accelerator-type=v5p-128",
        "--runtime-version=v2-alpha-tpuv5",
        "--labels=run=anneal,team=a,attempt=3,first=2",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        "--spot",
        "--service-account=trainer@my-project.iam.gserviceaccount.com",
        "--valid-until-duration=6h",
        "--async",
    )
    assert command.why == "2xv5p-128: 128 chips, 32 machines, attempt 3"


def test_a_resource_reads_back_what_create_wrote():
    cloud = fake_cloud.Cloud()
    config = CONFIGS["qr"]
    command = gcloud.create(config, 4, 2, "s.sh")
    assert "--metadata-from-file=startup-script=s.sh" in command.argv
    assert "--node-id=anneal" in command.argv and "--spot" not in command.argv
    cloud.run(command.argv)
    found = gcloud.parse(cloud.run(gcloud.describe(config).argv).out)
    assert found == gcloud.Resource(state="ACCEPTED", attempt=4, first=2)


@pytest.mark.parametrize("text", ["", "{}", '{"tpu": {"nodeSpec": [{"node": {}}]}}', "[]"])
def test_a_resource_of_somebody_else(text):
    with pytest.raises(spec.LaunchError, match="not created by midjax launch"):
        gcloud.parse(text)


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        (fake_cloud.MISSING.err, True),
        (fake_cloud.NO_OBJECT.err, True),
        ("ERROR: (gcloud.storage.ls) gs://my-bucket not found: 404.", True),
        ("ERROR: (gcloud.storage.cat) HTTPError 404: The specified bucket does not exist.", True),
        ("ERROR: ResponseError: code=404, message=Requested entity was not found.", True),
        ('Error from server (NotFound): jobsets.jobset.x-k8s.io "anneal" not found', True),
        ("connection reset", False),
        (
            "<urllib3.connection.HTTPSConnection object at 0x7f4044043a90>: Failed to establish a "
            "new connection: [Errno 101] Network is unreachable",
            False,
        ),
        ("HTTPSConnectionPool(host='storage.googleapis.com', port=443): Max retries", False),
        ("ERROR: (gcloud.storage.cat) HTTPError 503: request 404 of 500 in project my-404", False),
        ("ERROR: credentials file key.json not found", False),
        ("Unable to connect to the server: dial tcp: lookup cluster: no such host", False),
    ],
)
def test_missing_is_not_the_same_as_failed(said, missing):
    assert gcloud.is_missing(runner.Done(code=1, err=said)) == missing
    assert not gcloud.is_missing(runner.Done(code=0, err=said))


@pytest.mark.parametrize(("code", "text"), [(1, ""), (0, "exit 0\n"), (0, "exit 7\n")])
def test_a_start_script_that_cannot_be_read_is_a_failure(tmp_path, code, text):
    """What the machine's shell is given, run here with a gcloud that prints `text`, ends `code`."""
    (word,) = [w for w in gcloud.start(CONFIGS["vm"], 1).argv if w.startswith("--command=")]
    (tmp_path / "text").write_text(text)
    for name, line in (("gcloud", f"cat {tmp_path}/text; exit {code}"), ("sudo", 'exec "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", word.removeprefix("--command=")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == (code or int(text.split()[1]))
