# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import shutil
import subprocess

import fake_cloud
import pytest
import yaml

from midjax.launch import exits, gke, jobset, spec

XPK = os.environ.get("MIDJAX_XPK") or shutil.which("xpk")


def argv_of(config: spec.Launch, env_file: pathlib.Path) -> list[str]:
    env_file.write_text(jobset.env_file(config))
    command = gke.xpk(config, str(env_file))
    assert command is not None
    return list(command.argv)


def run_xpk(argv: list[str], manifest: pathlib.Path) -> subprocess.CompletedProcess:
    """xpk without a cloud: it writes its manifest, and reports nothing to anybody."""
    more = ["--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"]
    return subprocess.run(
        [str(XPK), *argv[1:], *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=manifest.parent,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TELEMETRY_ENABLED": "false"},
    )


def test_the_line_of_xpk_in_full():
    command = gke.xpk(fake_cloud.on_gke(slice="2xv5e-16"), "xpk.env")
    assert command is not None and command.argv == (
        *("xpk", "workload", "create", "--workload=anneal", "--cluster=tpus"),
        *("--project=my-project", "--zone=us-west4-a", "--tpu-type=v5litepod-16"),
        *("--num-slices=2", "--docker-image=us-docker.pkg.dev/p/r/midjax:1"),
        *("--max-restarts=20", "--termination-grace-period-seconds=120", "--env-file=xpk.env"),
        "--command=exec midjax train --gin_file=gin/recipes/demo_midtrain.gin "
        "--gin.Train.run_dir=gs://my-bucket/runs/anneal/run",
    )
    assert "--tpu-type=v5p-4x4x32" in gke.xpk(fake_cloud.on_gke(slice="v5p:4x4x32"), "e").argv
    assert gke.xpk(fake_cloud.on_gke(secrets={"WANDB_API_KEY": "wandb"}), "e") is None


@pytest.mark.skipif(
    not XPK, reason="xpk is not installed here (make check-launch installs it and runs this)"
)
@pytest.mark.parametrize("size", ["2xv5e-16", "v5p-128", "v5p:4x4x32", "v6e-256"])
def test_xpk_takes_the_line_and_makes_of_it_what_we_do(size, tmp_path):
    config = fake_cloud.on_gke(slice=size, overrides=("Text.field=a b",))
    manifest = tmp_path / "m.yaml"
    done = run_xpk(argv_of(config, tmp_path / "xpk.env"), manifest)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = yaml.safe_load(manifest.read_text())["spec"]
    ours = jobset.documents(config)[1]["spec"]
    assert theirs["failurePolicy"] == ours["failurePolicy"]
    their_job, our_job = theirs["replicatedJobs"][0], ours["replicatedJobs"][0]
    assert their_job["replicas"] == our_job["replicas"]
    their_job, our_job = their_job["template"]["spec"], our_job["template"]["spec"]
    for field in ("parallelism", "completions", "backoffLimit"):
        assert their_job[field] == our_job[field]
    their_rule = their_job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert (their_rule["operator"], set(their_rule["values"])) == ("NotIn", set(exits.RESTART))
    theirs, ours = their_job["template"]["spec"], our_job["template"]["spec"]
    for name, value in theirs["nodeSelector"].items():
        assert ours["nodeSelector"][name] == value
    for field in ("restartPolicy", "hostNetwork", "dnsPolicy", "terminationGracePeriodSeconds"):
        assert theirs[field] == ours[field]
    chips = theirs["containers"][0]["resources"]["limits"]
    assert chips == ours["containers"][0]["resources"]["limits"]
    variables = {v["name"]: v["value"] for v in theirs["containers"][0]["env"]}
    assert variables["LIBTPU_INIT_ARGS"].split() == [flag.text for flag in config.flags]
    assert "exec midjax train --gin_file=" in theirs["containers"][0]["command"][2]


@pytest.mark.skipif(not XPK, reason="xpk is not installed here")
def test_xpk_refuses_what_it_does_not_know(tmp_path):
    argv = argv_of(fake_cloud.on_gke(), tmp_path / "xpk.env")
    argv[argv.index("--tpu-type=v5litepod-16")] = "--tpu-type=v5litepod-24"
    done = run_xpk(argv, tmp_path / "m.yaml")
    assert done.returncode != 0


def test_lines_of_kubectl():
    config = fake_cloud.on_gke(cluster_location="us-west4-b")
    assert gke.credentials(config).argv[-2:] == ("--location=us-west4-b", "--project=my-project")
    assert gke.apply(config, "j.yaml").argv == ("kubectl", "apply", "--filename=j.yaml")
    (patch,) = [word for word in gke.stop(config).argv if word.startswith("--patch=")]
    assert json.loads(patch.removeprefix("--patch=")) == {"spec": {"suspend": True}}
    queued = gke.stop(fake_cloud.on_gke(queue="tpus"))  # Kueue would start a suspended one again
    assert queued.argv == ("kubectl", "delete", "jobset/anneal", "--ignore-not-found")
    assert "jobset/anneal" in gke.delete(config).argv
    assert "configmap/anneal-worker" in gke.delete(config).argv


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "Running"),
        ([("Completed", "True")], "Completed"),
        ([("Failed", "True"), ("Suspended", "False")], "Failed"),
        ([("Suspended", "True")], "Suspended"),
    ],
)
def test_states(conditions, state):
    listed = [{"type": name, "status": status} for name, status in conditions]
    document = jobset.documents(fake_cloud.on_gke(), attempt=3)[1]
    assert gke.parse(json.dumps(document)) == gke.JobSet(state="Running", attempt=3, first=3)
    document["status"] = {"conditions": listed, "restarts": 2}
    assert gke.parse(json.dumps(document)) == gke.JobSet(state=state, attempt=5, first=3)


@pytest.mark.parametrize("text", ["no JSON", "{}", '{"metadata": {"labels": {}}}'])
def test_a_jobset_of_somebody_else(text):
    with pytest.raises(spec.LaunchError, match="not created by midjax launch"):
        gke.parse(text)
