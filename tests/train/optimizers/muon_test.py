# SPDX-License-Identifier: Apache-2.0
"""Muon against Keller Jordan's algorithm in NumPy, PyTorch's, and itself on several devices."""

import pathlib
import sys

import devices
import jax
import numpy as np
import pytest
import tiny_optimizer as tiny

from midjax import trees
from midjax.model import sharding
from midjax.train.optimizers import optimizer

LR = 0.02
MUONS = set(tiny.MATRICES) - {"embed", "head"}
SCALES = {
    "match_adamw": lambda rows, columns: 0.2 * np.sqrt(max(rows, columns)),
    "keller": lambda rows, columns: np.sqrt(max(1, columns / rows)),
}


def newton_schulz(x):
    """kellerjordan.github.io/posts/muon, in float64."""
    x = x / (np.linalg.norm(x) + 1e-7)
    if transposed := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if transposed else x


@pytest.mark.parametrize("nesterov, scale, multiplier", [
    (True, "match_adamw", 1.0), (False, "keller", 3.0)
])  # fmt: skip
def test_20_updates_against_the_algorithm(nesterov, scale, multiplier):
    """Muon's matrices to 1e-4: five steps multiply a small singular value's rounding by 500."""
    config = tiny.muon_config(nesterov=nesterov, scale=scale, muon_multiplier=multiplier)
    found, state = tiny.trained(config, LR)
    gradients = [tiny.clipped(g) for g in tiny.gradients(20)]
    start = tiny.arrays(0)
    for name in MUONS:
        parts = [tiny.parts_of(name, g[name]) for g in gradients]
        for i, p in enumerate(tiny.parts_of(name, start[name])):
            momentum = 0.0
            for g in (of[i] for of in parts):
                momentum = 0.95 * momentum + g  # as published: ours is 0.05 of it
                step = newton_schulz(g + 0.95 * momentum if nesterov else momentum)
                p = p - LR * (multiplier * SCALES[scale](*p.shape) * step + 0.1 * p)
            ours = tiny.parts_of(name, found[name])[i]
            np.testing.assert_allclose(ours, p, rtol=1e-4, atol=1e-4, err_msg=name)
    others, theirs = tiny.trained(tiny.adamw_config(), LR)
    for name in set(tiny.SHAPES) - MUONS:
        assert np.array_equal(found[name], others[name]), name
    assert set(tiny.flat(state["moments"]["nu"])) == set(tiny.SHAPES) - MUONS
    assert int(state["adam_count"]) == int(theirs["adam_count"]) == 20


@pytest.mark.parametrize("scale, theirs", [("match_adamw", "match_rms_adamw"), ("keller", None)])
def test_20_updates_against_pytorch(scale, theirs):
    """To 3 % of the way that a matrix went: PyTorch's Newton-Schulz is in bfloat16."""
    torch = pytest.importorskip("torch", minversion="2.9")
    config = tiny.muon_config(scale=scale, weight_decay=0.0, clip_norm=None)
    found, _ = tiny.trained(config, LR)
    gradients, start = tiny.gradients(20), tiny.arrays(0)
    for name in MUONS:
        # Ours map rows to columns, PyTorch's columns to rows.
        params = [torch.nn.Parameter(torch.tensor(p.T)) for p in tiny.parts_of(name, start[name])]
        muon = torch.optim.Muon(
            params, lr=LR, weight_decay=0.0, momentum=0.95, nesterov=True, adjust_lr_fn=theirs
        )
        for gradient in gradients:
            for p, g in zip(params, tiny.parts_of(name, gradient[name]), strict=True):
                p.grad = torch.tensor(g.T.copy())
            muon.step()
        for i, p in enumerate(params):
            ours, before = (tiny.parts_of(name, of[name])[i] for of in (found, start))
            way = np.linalg.norm(p.detach().numpy().T - before)
            assert np.linalg.norm(ours - p.detach().numpy().T) < 0.03 * way, name


def test_a_vector_cannot_be_muons():
    config = tiny.muon_config(muon_rules={"embed|head": "adamw", "(?!embed$|head$).*": "muon"})
    with pytest.raises(ValueError, match=r"gives Muon \['final_norm', 'layers/attn_norm'"):
        config.moments(tiny.SHAPES)
    with pytest.raises(ValueError, match=r"Muon.muon_rules: no rule matches .*'embed'"):
        tiny.muon_config(muon_rules={"head": "adamw"}).moments(tiny.SHAPES)


@pytest.mark.parametrize("change", [{"beta": 1.0}, {"muon_multiplier": 0.0}, {"b1": 1.0}])
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=r"Muon\."):
        tiny.muon_config(**change)


# ---- several devices ----

MESHES = {
    "one": {"fsdp": 1},
    "fsdp": {"fsdp": 2},
    "expert": {"fsdp": 1, "expert": 2},
    "tensor": {"fsdp": 1, "tensor": 2},
}
CONFIGS = {"muon": tiny.EVERY["muon"], "adafactor": tiny.EVERY["adafactor-momentum"]}


AXES = {
    "embed": ("vocab", "embed"),
    "layers/attn_norm": ("layers", "norm"),
    "layers/wq": ("layers", "embed", "heads", "head_dim"),
    "layers/expert_down": ("layers", "experts", "mlp", "expert_embed"),
}
SIZES = {"embed": (6, 4), "layers/attn_norm": (2, 4), "layers/wq": (2, 4, 2, 2),
         "layers/expert_down": (2, 2, 6, 4)}  # fmt: skip


def sharded(config: optimizer.Optimizer, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Parameters after three updates on a mesh, and every moment."""
    count = max(sizes.values())
    mesh = sharding.make(sharding.Mesh(**({"data": 1, "tensor": 1} | sizes)), jax.devices()[:count])
    shapes = trees.nested({n: jax.ShapeDtypeStruct(s, "float32") for n, s in SIZES.items()})
    axes, made = trees.nested(AXES), optimizer.make(config)
    of_params = sharding.tree(mesh, axes, shapes)
    of_state = sharding.tree(
        mesh, optimizer.logical_axes(config, axes, shapes), jax.eval_shape(made.init, shapes)
    )

    def numbers(seed: int):
        rng = np.random.default_rng(seed)
        drawn = {name: rng.normal(size=size).astype(np.float32) for name, size in SIZES.items()}
        return jax.device_put(trees.nested(drawn), of_params)

    def update(params, state, gradients):
        directions, state = made.update(gradients, state, params)
        return jax.tree.map(lambda p, d: p - LR * d, params, directions), state

    with jax.set_mesh(mesh):
        params, state = numbers(0), jax.jit(made.init, out_shardings=of_state)(numbers(0))
        step = jax.jit(update, out_shardings=(of_params, of_state))
        for seed in (1, 2, 3):
            params, state = step(params, state, numbers(seed))
        everything = {"params": params, "moments": state["moments"]}
        assert count == 1 or not all(x.is_fully_replicated for x in jax.tree.leaves(everything))
        return {name: np.asarray(x) for name, x in trees.named_leaves(everything)}


def test_two_devices_compute_what_one_does(tmp_path):
    """Three updates: parameters and moments to 1e-4, see above for the reason."""
    devices.run_script(__file__, tmp_path / "found.npz", count=2)
    found = np.load(tmp_path / "found.npz")
    for name in found.files:
        kind, _, path = name.split("|")
        np.testing.assert_allclose(
            found[name], found[f"{kind}|one|{path}"], rtol=1e-4, atol=1e-4, err_msg=name
        )
    assert {tuple(name.split("|")[:2]) for name in found.files} == {
        (kind, mesh) for kind in CONFIGS for mesh in MESHES
    }


if __name__ == "__main__":
    np.savez(
        pathlib.Path(sys.argv[1]),
        **{
            f"{kind}|{mesh}|{path}": x
            for kind, config in CONFIGS.items()
            for mesh, sizes in MESHES.items()
            for path, x in sharded(config, sizes).items()
        },
    )
