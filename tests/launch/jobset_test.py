# SPDX-License-Identifier: Apache-2.0
import fake_cloud
import pytest
import yaml

from midjax.launch import emit, exits, jobset, jobset_check, worker


@pytest.mark.parametrize(
    "size", ["v4-8", "v4-128", "v5e-8", "v5e-16", "2xv5e-256", "v5p-128", "3xv5p:4x4x32", "v6e-1"]
)
def test_every_size_is_well_formed_as_it_is_read_back(size):
    config = fake_cloud.on_gke(slice=size, secrets={"WANDB_API_KEY": "wandb"}, queue="q")
    config_map, document = yaml.safe_load_all(emit.texts(jobset.documents(config)))
    jobset_check.check(config, document)
    assert config_map["data"]["worker.sh"] == worker.script(config, 1)
    job = document["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["replicas"] * job["template"]["spec"]["parallelism"] * chips == config.tpu.chips


def test_v5e_16_in_full():
    document = jobset.documents(fake_cloud.on_gke(slice="v5e-16", service_account="trainer"))[1]
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert {"key": "cloud.google.com/gke-spot", "operator": "Exists"} in pod["tolerations"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["serviceAccountName"] == "trainer"
    assert pod["containers"][0]["command"] == ["bash", "/etc/midjax/worker.sh"]


@pytest.mark.parametrize(
    ("asked", "label"), [("v5p:1x2x2", "2x2x1"), ("v5p:2x2x1", "2x2x1"), ("v5p:4x2x2", "2x2x4")]
)
def test_a_torus_is_labelled_as_gke_names_it_however_it_was_written(asked, label):
    document = jobset.documents(fake_cloud.on_gke(slice=asked))[1]
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == label


def test_codes_that_a_restart_cannot_mend_fail_the_job():
    document = jobset.documents(fake_cloud.on_gke())[1]
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    for code in range(1, 256):
        fails = (code in rule["values"]) == (rule["operator"] == "In")
        assert fails == (exits.verdict(code) == "stop")
    assert len(rule["values"]) <= 255 and 0 not in rule["values"]  # Kubernetes' own limits
    assert document["spec"]["failurePolicy"] == {
        "maxRestarts": 20,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }


def test_secrets_are_references():
    config = fake_cloud.on_gke(secrets={"WANDB_API_KEY": "wandb"}, spot=False)
    config_map, document = jobset.documents(config)
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (found,) = [v for v in pod["containers"][0]["env"] if v["name"] == "WANDB_API_KEY"]
    reference = {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert found == {"name": "WANDB_API_KEY", "valueFrom": reference}
    assert "WANDB_API_KEY" not in config_map["data"]["worker.sh"] + jobset.env_file(config)
    assert "gke-spot" not in emit.text(document)


def test_the_file_for_xpk_has_the_same_variables():
    lines = jobset.env_file(fake_cloud.on_gke(env={"A": "b c"})).splitlines()
    assert lines[0] == "JAX_PLATFORMS=tpu" and lines[-1] == "A=b c"
