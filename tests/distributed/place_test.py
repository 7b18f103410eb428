# SPDX-License-Identifier: Apache-2.0
"""Which process this one is: told by the environment, or found on a TPU."""

import os
import subprocess
import sys

import pytest
from jax._src.clusters import cloud_tpu_cluster as clusters

from midjax.distributed import place

TOLD = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


def test_the_environment_tells():
    want = place.Place(address="10.0.0.1:1234", number=4, index=3)
    assert place.find(TOLD) == want
    assert place.find({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize("name", TOLD)
def test_all_three_or_none(name):
    some = {key: value for key, value in TOLD.items() if key != name}
    with pytest.raises(place.PlaceError, match=f"is set without {name}"):
        place.find(some)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_NUM_PROCESSES", "four", "JAX_NUM_PROCESSES must be a whole number, got 'four'"),
        ("JAX_PROCESS_ID", "-1", "JAX_PROCESS_ID must be a whole number"),
        ("JAX_PROCESS_ID", "4", "JAX_PROCESS_ID = 4 with JAX_NUM_PROCESSES = 4: .* from 0 to"),
        ("JAX_COORDINATOR_ADDRESS", "10.0.0.1", "must be host:port of process 0"),
    ],
)
def test_what_is_wrong_is_told(name, value, message):
    with pytest.raises(place.PlaceError, match=message):
        place.find(TOLD | {name: value})


@pytest.fixture
def pod(monkeypatch):
    """The second of four hosts in each of two slices, as GKE says it."""
    monkeypatch.setattr(clusters, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(clusters, "get_metadata", None)  # nobody asks the web
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1", "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_a_pod_of_gke_is_found_unless_it_is_to_compute_elsewhere(pod):
    found = place.find({"JAX_PLATFORMS": "tpu"})
    assert found == place.Place(address="localhost:8482", number=8, index=5, is_tpu=True)
    assert place.find({}) == found
    assert place.find({"JAX_COORDINATOR_PORT": "99"}).address == "localhost:99"
    assert place.find({"JAX_PLATFORMS": "cpu"}) is None
    assert place.find(TOLD).index == 3  # what is said goes first


def test_a_tpu_with_one_host_is_alone(pod, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    monkeypatch.delenv("MEGASCALE_NUM_SLICES")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "0")
    assert place.find({}) is None


def test_a_tpu_vm_is_found_by_its_metadata(monkeypatch):
    said = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "x:0:127.0.0.1,x:1:127.0.0.2",
        "tpu-env": "",
    }
    monkeypatch.setattr(clusters, "running_in_cloud_tpu_vm", True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(clusters, "get_metadata", lambda key: (said[key], 200))
    assert place.find({}) == place.Place(address="127.0.0.1:8482", number=2, index=1, is_tpu=True)
    del said["worker-network-endpoints"]
    with pytest.raises(place.PlaceError, match="does not say which process of how many"):
        place.find({})


def test_no_device_is_touched():
    code = (
        "from midjax.distributed import place\n"
        "from jax._src import xla_bridge\n"
        "assert place.find().number == 4\n"
        "print(xla_bridge.backends_are_initialized())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | TOLD, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
