# SPDX-License-Identifier: Apache-2.0
import dataclasses

import fake_cloud
import pytest

from midjax.hardware import flags, slices
from midjax.launch import spec


def test_the_command_is_the_laptops_and_the_run_lives_in_the_bucket():
    config = fake_cloud.launch(overrides=("Mesh.fsdp=16",))
    assert config.arguments == (
        "train",
        "--gin_file=gin/recipes/demo_midtrain.gin",
        "--gin.Mesh.fsdp=16",
        "--gin.Train.run_dir=gs://my-bucket/runs/anneal/run",
    )
    read = fake_cloud.launch(overrides=("Start.run={bucket}/p", "Train.run_dir={bucket}/x"))
    assert read.arguments[2:] == (
        "--gin.Start.run=gs://my-bucket/runs/p",
        "--gin.Train.run_dir=gs://my-bucket/runs/x",
    )
    elsewhere = fake_cloud.launch(overrides=("Train.run_dir=gs://b-2/x",))
    assert elsewhere.arguments[2:] == ("--gin.Train.run_dir=gs://b-2/x",)


def test_what_follows_from_the_fields():
    config = fake_cloud.launch(slice="2xv5litepod-16", labels={"team": "a"})
    assert (config.tpu.name, config.region, config.location) == ("2xv5e-16", "us-west4", "us-west4")
    assert config.runtime == "v2-alpha-tpuv5-lite"
    assert config.all_labels == {"run": "anneal", "team": "a"}
    assert set(spec.RUNTIMES) == {"v4", "v5e", "v5p", "v6e"}
    more = fake_cloud.launch(slice="v6e-16", compiler_flags="--xla_dump_to=gs://b/d")
    assert [flag.name for flag in more.flags][-1] == "xla_dump_to"
    experts = fake_cloud.launch(slice="v6e-16", mixture_of_experts=True)
    assert "81920" in [flag.value for flag in experts.flags]
    dense_limit = "--xla_tpu_scoped_vmem_limit_kib=98304"  # not what a mixture's table has
    fake_cloud.launch(slice="v6e-16", mixture_of_experts=True, compiler_flags=dense_limit)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "Anneal", "a small letter"),
        ("name", "a" * 40, "a small letter"),
        ("name", "a;reboot", "a small letter"),
        ("zone", "us-west4", "a zone such as"),
        ("project", "x y", "the id of a project"),
        ("bucket", "my-bucket", "gs://BUCKET"),
        ("bucket", "gs://my-bucket/", "gs://BUCKET"),
        ("recipe", "/home/me/a.gin", "relative path"),
        ("image", "a b", "a container image"),
        ("service_account", "me", "its address"),
        ("valid_until", "6 hours", "a duration"),
        ("backend", "gke", "needs Launch.cluster"),
        ("overrides", ("--gin.Mesh.fsdp=4",), "as after --gin."),
        ("overrides", ("Mesh.fsdp",), "Class.field=value"),
        ("overrides", ("Train.run_dir=runs/x",), "disk of a TPU machine is gone with it"),
        ("labels", {"attempt": "1"}, "midjax's own"),
        ("labels", {"Team": "a"}, "a-z"),
        ("env", {"HF_TOKEN": "canary-1"}, "Launch.secrets"),
        ("env", {"a-b": "1"}, "no name of an environment variable"),
        ("secrets", {"HF_TOKEN": "hf_canary/value"}, "never its value"),
        ("max_restarts", -1, "0 or more"),
        ("grace_seconds", 30, "killed while it saves"),
        ("slice", "v5p:4x4x32", "default torus"),
    ],
)
def test_refused(field, value, said):
    with pytest.raises(spec.LaunchError) as refused:
        fake_cloud.launch(**{field: value})
    assert said in str(refused.value)
    assert "canary" not in str(refused.value)  # what may be a secret is not repeated


def test_a_slice_that_does_not_exist_names_the_nearest():
    with pytest.raises(slices.NoSuchSliceError, match="Nearest: v5e-8, v5e-16, v5e-32"):
        fake_cloud.launch(slice="v5e-24")


@pytest.mark.parametrize(
    "given",
    [
        "--xla_a=1 --xla_a=2",
        "--xla_enable_async_all_gather=true",  # in the chip's table
        "TPU_MEGACORE=MEGACORE_DENSE",
    ],
)
def test_flags_given_twice_or_no_flags(given):
    with pytest.raises(flags.FlagError):
        fake_cloud.launch(compiler_flags=given)


def test_gke_may_have_another_torus_and_a_kubernetes_account():
    config = fake_cloud.on_gke(slice="v5p:4x4x32", service_account="trainer")
    assert config.tpu.chips == 512
    assert dataclasses.replace(config, cluster_location="us-west4-b").location == "us-west4-b"
