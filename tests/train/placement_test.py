# SPDX-License-Identifier: Apache-2.0
"""The optimizer's state over the copies of the model and in host memory: the same run."""

import json
import pathlib
import sys
import types

import devices
import jax
import numpy as np
import pytest
import tiny_run as tiny

from midjax import checkpoint
from midjax.model import sharding
from midjax.train import loop, placement

COPIES = sharding.Mesh(data=2, fsdp=2, tensor=1)
KINDS = {
    "over-data": {"state_sharding": "over_data"},
    "on-host": {"state_sharding": "over_data", "state_memory": "pinned_host"},
    "plain": {},
}


def recipe(folder, name, steps, **kwargs):
    every = checkpoint.Keep(every_steps=1, last=1, forever_every_steps=None)
    return tiny.train(folder, name, steps=steps, mesh=COPIES, checkpoint=every, **kwargs)


def main(folder):
    """On four devices: a run that stays as it is, and one that resumes in another kind, twice."""
    held = {}
    for steps, (name, kwargs) in zip((4, 5, 6), KINDS.items(), strict=True):
        begun = loop.begin(recipe(folder, "changing", steps, **kwargs))
        arrays = jax.tree.leaves(begun.state.opt_state)
        held[name] = {
            "numbers": sum(x.size for x in arrays),
            "on the first device": sum(x.addressable_shards[0].data.size for x in arrays),
            "memory": sorted({x.sharding.memory_kind for x in arrays}),
        }
        loop.go(begun)
    loop.run(recipe(folder, "plain", 6))
    (folder / "held.json").write_text(json.dumps(held))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placement")
    tiny.write_tokens(folder / "tokens")
    devices.run_script(__file__, folder, count=4)
    return folder


def losses(folder, name):
    return [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").open()]


def test_the_losses_are_those_of_a_state_that_lies_as_its_parameters(folder):
    assert losses(folder, "changing") == pytest.approx(losses(folder, "plain"), rel=1e-6)
    assert len(losses(folder, "plain")) == 6
    last = [checkpoint.read_facts(str(folder / n), 6)["manifest"] for n in ("changing", "plain")]
    assert last[0]["norms"] == pytest.approx(last[1]["norms"], rel=1e-5)


def test_each_device_holds_its_part(folder):
    held = json.loads((folder / "held.json").read_text())
    parts = {name: of["on the first device"] / of["numbers"] for name, of in held.items()}
    # fsdp halves all but the norms, and the copies halve all of it again.
    assert 0.5 <= parts["plain"] < 0.55
    assert parts["over-data"] == pytest.approx(parts["plain"] / 2, rel=0.01)
    assert held["over-data"]["memory"] == ["device"]
    assert held["on-host"]["memory"] == ["device", "pinned_host"]  # its count is not moved


def test_the_widest_dimension_that_divides_is_split():
    shape = {"data": 4, "fsdp": 2, "context": 1, "expert": 1, "tensor": 2}
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))

    def split(spec, size):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return tuple(sharding.over_data(place, size).spec)

    fsdp = ("fsdp", "context", "expert")
    assert split((None, fsdp, "tensor"), (8, 16, 64)) == (None, fsdp, ("tensor", "data"))
    assert split((None, fsdp, "tensor"), (64, 16, 64)) == ("data", fsdp, "tensor")
    assert split((None, fsdp), (3, 16)) == (None, ("fsdp", "data"))
    assert split((None, None), (3, 5)) == (None, None)  # nothing divides


def test_a_memory_that_is_not_there_is_refused():
    def device(*kinds):
        found = [types.SimpleNamespace(kind=kind) for kind in kinds]
        return types.SimpleNamespace(device_kind="toy", addressable_memories=lambda: found)

    def mesh(*kinds):
        return types.SimpleNamespace(devices=np.array([device(*kinds)], object))

    with pytest.raises(ValueError, match=r"'pinned_host', and toy has device. Use Train.state_mem"):
        placement.check(mesh("device"), "pinned_host")
    placement.check(mesh("device"), "device")
    placement.check(mesh("device", "pinned_host"), "pinned_host")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
