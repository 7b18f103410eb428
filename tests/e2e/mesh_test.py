# SPDX-License-Identifier: Apache-2.0
"""The same run on other meshes and in other microbatches: losses agree to 1e-5 for 10 updates."""

import json
import os
import subprocess
import sys

import pytest
import tiny_run as tiny

from midjax import checkpoint, config
from midjax.model import architecture, sharding
from midjax.train import loop, step

STEPS = 10


def recipe(folder, name, **kwargs):
    return tiny.train(folder, name, steps=STEPS, **kwargs)


def losses(folder, name):
    rows = list(map(json.loads, (folder / name / "metrics.jsonl").open()))
    assert len(rows) == STEPS
    return [row["loss"] for row in rows]


def in_process(folder, root, devices):
    """Runs the ordinary verb in a process with that many emulated devices."""
    config.save(root, folder / f"{devices}-recipe")
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "midjax", "train",
         f"--gin_file={folder / f'{devices}-recipe' / 'config.gin'}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    tiny.write_tokens(folder / "tokens")
    loop.run(recipe(folder, "one"))
    return folder


@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        (2, sharding.Mesh(data=1, fsdp=2, tensor=1)),
        (4, sharding.Mesh(data=1, fsdp=2, tensor=2)),
    ],
)
def test_meshes_agree(folder, devices, mesh):
    name = f"mesh-{devices}"
    in_process(folder, recipe(folder, name, mesh=mesh), devices)
    assert losses(folder, name) == pytest.approx(losses(folder, "one"), rel=1e-5)
    # The rows, and the data position, are the same ones.
    one, other = (checkpoint.read_facts(str(folder / n), STEPS)["data"] for n in ("one", name))
    assert one == other


EXPERTS = architecture.Experts(count=4, per_token=2, ffn_dim=24, normalized=True)
ROUTER = step.Loss(z_loss_weight=1e-3, balance_loss_weight=0.02, router_z_loss_weight=1e-3)


@pytest.mark.parametrize(
    "sizes",
    [
        {"expert": 2, "fsdp": 2},
        {"expert": 4},
        {"context": 2, "expert": 2},
        {"fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_experts_on_any_mesh_train_as_on_one_device(folder, sizes):
    """Losses and the routers' own, which are products of means over the whole batch."""
    mixture = {"model": tiny.model(experts=EXPERTS, dense_layers=(0,)), "loss": ROUTER}
    if not (folder / "experts").exists():
        loop.run(recipe(folder, "experts", **mixture))
    name = "experts-" + "-".join(sizes)
    mesh = sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
    in_process(folder, recipe(folder, name, mesh=mesh, **mixture), 4)
    rows = [list(map(json.loads, (folder / n / "metrics.jsonl").open())) for n in (name, "experts")]
    for found, want in zip(*rows, strict=True):
        for key in ("loss", "balance_loss", "router_z_loss", "expert_load_max", "grad_norm"):
            assert found[key] == pytest.approx(want[key], rel=1e-5 if key == "loss" else 1e-4)
        assert want["balance_loss"] >= EXPERTS.per_token * 0.99  # k where all are used evenly


def test_a_checkpoint_of_four_devices_goes_on_on_one(folder):
    """Fewer devices after the middle of the run: the losses are those of one device throughout."""
    mesh = sharding.Mesh(data=1, fsdp=2, tensor=2)
    half = recipe(folder, "moved", mesh=mesh)
    in_process(folder, tiny.replace(half, train_tokens=half.train_tokens // 2), 4)
    loop.run(recipe(folder, "moved"))
    assert losses(folder, "moved") == pytest.approx(losses(folder, "one"), rel=1e-5)


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
