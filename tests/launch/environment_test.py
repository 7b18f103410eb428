# SPDX-License-Identifier: Apache-2.0
import fake_cloud
import pytest

from midjax.distributed import place
from midjax.hardware import flags
from midjax.launch import environment, spec


@pytest.mark.parametrize("size", ["v4-32", "v5e-16", "v5p-128", "v6e-256"])
def test_variables_of_each_chip(size):
    found = {v.name: v.value for v in environment.fixed(fake_cloud.launch(slice=size))}
    chip = size.partition("-")[0]
    assert found["JAX_PLATFORMS"] == "tpu"
    assert flags.parse(found["LIBTPU_INIT_ARGS"]) == {f.name: f.value for f in flags.flags(chip)}
    assert found["JAX_COMPILATION_CACHE_DIR"] == f"gs://my-bucket/runs/cache/{chip}"
    assert all(v.why for v in environment.fixed(fake_cloud.launch(slice=size)))


def test_the_recipes_variables_come_last_and_replace():
    config = fake_cloud.launch(env={"HF_HUB_OFFLINE": "0", "TPU_STDERR_LOG_LEVEL": "0"})
    found = [(v.name, v.value) for v in environment.fixed(config)]
    assert found[-2:] == [("HF_HUB_OFFLINE", "0"), ("TPU_STDERR_LOG_LEVEL", "0")]
    assert len(found) == len(dict(found))


@pytest.mark.parametrize(
    "name",
    ["LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "MEGASCALE_SLICE_ID", "JAX_PROCESS_ID", "TPU_WORKER_ID"],
)
def test_variables_that_would_undo_it_are_refused(name):
    with pytest.raises(spec.LaunchError, match=name):
        environment.check(fake_cloud.launch(env={name: "x"}))
    environment.check(fake_cloud.launch())


def test_xlas_own_flags_are_read_too():
    environment.check(fake_cloud.launch(env={"XLA_FLAGS": "--xla_dump_to=gs://b/x"}))
    with pytest.raises(flags.FlagError, match="given twice"):
        environment.check(fake_cloud.launch(env={"XLA_FLAGS": "--xla_a=1 --xla_a=2"}))
    for known in ("--xla_tpu_a=1", "--tpu_a=1", "--xla_jf_a=1", "--xla_enable_async_all_gather=1"):
        with pytest.raises(spec.LaunchError, match="Launch.compiler_flags"):
            environment.check(fake_cloud.launch(env={"XLA_FLAGS": known}))


def test_what_is_passed_on_of_a_machine_that_was_told_its_place_is_a_place():
    told = {place.ADDRESS: "10.0.0.2:1234", place.NUMBER: "4", place.INDEX: "3", "OTHER": "x"}
    passed = {name: told[name] for name in environment.PASSED_ON if name in told}
    assert place.find(passed) == place.Place(address="10.0.0.2:1234", number=4, index=3)
