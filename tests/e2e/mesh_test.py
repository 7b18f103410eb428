# SPDX-License-Identifier: Apache-2.0
"""The same run on other meshes and in other microbatches: losses agree to 1e-5 for 10 updates."""

import json
import pathlib
import sys

import devices
import jax
import pytest
import tiny_run as tiny

from midjax import __main__ as cli
from midjax import checkpoint, config
from midjax.model import architecture, sharding
from midjax.train import loop, step

STEPS = 10
COMPILED = "/jax/core/compile/backend_compile_duration"


def recipe(folder, name, **kwargs):
    return tiny.train(folder, name, steps=STEPS, **kwargs)


def losses(folder, name):
    rows = list(map(json.loads, (folder / name / "metrics.jsonl").open()))
    assert len(rows) == STEPS
    return [row["loss"] for row in rows]


MESHES = {
    "mesh-2": {"fsdp": 2},
    "mesh-4": {"fsdp": 2, "tensor": 2},
    "mesh-4-context": {"fsdp": 2, "context": 2},
}
EXPERTS = {
    "model": tiny.model(
        experts=architecture.Experts(count=4, per_token=2, ffn_dim=24, normalized=True),
        dense_layers=(0,),
    ),
    "loss": step.Loss(z_loss_weight=1e-3, balance_loss_weight=0.02, router_z_loss_weight=1e-3),
}
EXPERT_MESHES = {
    "experts-fsdp": {"expert": 2, "fsdp": 2},
    "experts-context": {"context": 2, "expert": 2},
    "experts-tensor": {"fsdp": 2, "tensor": 2},
}


def mesh_of(sizes):
    return sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))


def half(root):
    return tiny.replace(root, train_tokens=root.train_tokens // 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every run on several devices, by the ordinary verb: one process for each number of them."""
    folder = tmp_path_factory.mktemp("mesh")
    tiny.write_tokens(folder / "tokens")
    roots = {name: recipe(folder, name, mesh=mesh_of(sizes)) for name, sizes in MESHES.items()}
    roots |= {
        name: recipe(folder, name, mesh=mesh_of(sizes), **EXPERTS)
        for name, sizes in EXPERT_MESHES.items()
    }
    roots["moved"] = half(recipe(folder, "moved", mesh=mesh_of(MESHES["mesh-4"])))
    roots["fewer"] = half(recipe(folder, "fewer", mesh=mesh_of(MESHES["mesh-4"])))
    roots["more"] = recipe(folder, "more", mesh=mesh_of(MESHES["mesh-4"]))
    loop.run(half(recipe(folder, "more")))
    for name, root in roots.items():
        config.save(root, folder / ("2" if name == "mesh-2" else "4") / name)
    config.save(recipe(folder, "fewer", mesh=mesh_of(MESHES["mesh-2"])), folder / "2" / "fewer")
    for count in (4, 2):
        devices.run_script(__file__, folder, count=count)
    loop.run(recipe(folder, "one"))
    loop.run(recipe(folder, "experts", **EXPERTS))
    return folder


def main(folder):
    compiled = []

    def hear(event, seconds, **more):
        if event == COMPILED and more.get("fun_name") == "jit(train_step)":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(hear)
    for place in sorted((folder / str(jax.device_count())).iterdir()):
        del compiled[:]
        assert cli.main(["train", f"--gin_file={place / 'config.gin'}"]) == 0, place
        # What was compiled beside the restore is what the loop calls, on any mesh.
        assert len(compiled) == 1, place


@pytest.mark.parametrize("name", sorted(MESHES))
def test_meshes_agree(folder, name):
    assert losses(folder, name) == pytest.approx(losses(folder, "one"), rel=1e-5)
    # The rows, and the data position, are the same ones.
    one, other = (checkpoint.read_facts(str(folder / n), STEPS)["data"] for n in ("one", name))
    assert one == other


@pytest.mark.parametrize("name", sorted(EXPERT_MESHES))
def test_experts_on_any_mesh_train_as_on_one_device(folder, name):
    """Losses and the routers' own, which are products of means over the whole batch."""
    rows = [list(map(json.loads, (folder / n / "metrics.jsonl").open())) for n in (name, "experts")]
    for found, want in zip(*rows, strict=True):
        for key in ("loss", "balance_loss", "router_z_loss", "expert_load_max", "grad_norm"):
            assert found[key] == pytest.approx(want[key], rel=1e-5 if key == "loss" else 1e-4)
        assert want["balance_loss"] >= 2 * 0.99  # experts per token, where all are used evenly


def test_a_checkpoint_of_four_devices_goes_on_on_one(folder):
    """Fewer devices after the middle of the run: the losses are those of one device throughout."""
    assert checkpoint.steps(str(folder / "moved"))[-1] == STEPS // 2
    loop.run(recipe(folder, "moved"))
    assert losses(folder, "moved") == pytest.approx(losses(folder, "one"), rel=1e-5)


@pytest.mark.parametrize("name", ["fewer", "more"])
def test_a_run_goes_on_on_other_devices(folder, name):
    """From four devices (fsdp 2, tensor 2) to two (fsdp 2), and from one to four."""
    assert losses(folder, name) == pytest.approx(losses(folder, "one"), rel=1e-5)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_gradient_accumulation_equals_the_big_batch(folder, microbatches):
    name = f"microbatches-{microbatches}"
    loop.run(recipe(folder, name, microbatches=microbatches))
    assert losses(folder, name) == pytest.approx(losses(folder, "one"), rel=1e-5)


def test_batches_that_do_not_divide_are_refused(folder):
    with pytest.raises(ValueError, match=r"microbatches = 3 does not divide Data.batch_rows = 8"):
        recipe(folder, "x", microbatches=3)
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        loop.run(recipe(folder, "x", mesh=sharding.Mesh(data=3, fsdp=1, tensor=1)))
    assert not (folder / "x").exists()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
