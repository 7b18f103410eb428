# SPDX-License-Identifier: Apache-2.0
"""Experts against transformers' blocks, and that neither mesh, padding nor imbalance matter.

What needs four devices runs in one process that poses as having them: this file as a script.
"""

import contextlib
import importlib
import math
import pathlib
import pickle
import sys

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import architecture, grouped, moe, sharding

D, F, E = 16, 12, 8
NAMES = ("router", "expert_gate", "expert_up", "expert_down")


def experts(per_token, count=E, **kwargs):
    return architecture.Experts(count=count, per_token=per_token, ffn_dim=F, **kwargs)


SPARSE = experts(2, routing="sparsemixer", sparsemixer_eps=0.1)
# family -> (block, how its router is called, our settings for k experts per token)
BLOCKS = {
    "mixtral": ("MixtralSparseMoeBlock", "gate", lambda k: experts(k, normalized=True)),
    "qwen3_moe": ("Qwen3MoeSparseMoeBlock", "gate", lambda k: experts(k, normalized=True)),
    "olmoe": ("OlmoeSparseMoeBlock", "gate", experts),
    "phimoe": ("PhimoeSparseMoeBlock", "router", lambda k: SPARSE),
}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def inputs(seed, rows=4, length=12):
    """x, weights, and a gradient of the result."""
    weights = {
        "router": normal(seed, D, E),
        "expert_gate": normal(seed + 1, E, D, F) / 2,
        "expert_up": normal(seed + 2, E, D, F) / 2,
        "expert_down": normal(seed + 3, E, F, D) / 2,
    }
    return normal(seed + 4, rows, length, D), weights, normal(seed + 5, rows, length, D)


def overloaded(x, weights, favourites):
    """The same with a router that sends all tokens to the first experts."""
    router = weights["router"].at[0].set(0).at[0, :favourites].set(10.0)
    return x.at[..., 0].set(3.0), weights | {"router": router}


def run(config, x, weights, grad, valid, dtype="float32"):
    """y, Aux, and the gradients of x and weights; the routers' losses included in them."""

    def objective(x, weights):
        y, aux = moe.apply(config, jax.nn.silu, x, weights, valid, dtype)
        losses = moe.balance_loss(aux, config) + 0.1 * moe.router_z_loss(aux)
        return jnp.sum(y * grad) + losses, (y, aux)

    grads, found = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(x, weights)
    return *found, grads


def their_block(family, per_token, weights):
    """A block of transformers with these weights, and the names of its parameters by ours."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    base = f"transformers.models.{family}"
    kind, router, _ = BLOCKS[family]
    names = {"mixtral": "MixtralConfig", "qwen3_moe": "Qwen3MoeConfig", "olmoe": "OlmoeConfig"}
    config_of = importlib.import_module(f"{base}.configuration_{family}")
    config = getattr(config_of, names.get(family, "PhimoeConfig"))(
        hidden_size=D,
        intermediate_size=F,
        num_experts_per_tok=per_token,
        hidden_act="silu",
        **({"moe_intermediate_size": F, "norm_topk_prob": True} if family == "qwen3_moe" else {}),
        **({"num_experts": E} if family in ("qwen3_moe", "olmoe") else {"num_local_experts": E}),
        **({"router_jitter_noise": 0.1} if family == "phimoe" else {}),
        **({"norm_topk_prob": False} if family == "olmoe" else {}),
    )
    block = getattr(importlib.import_module(f"{base}.modeling_{family}"), kind)(config).eval()
    gate_up = jnp.concatenate((weights["expert_gate"], weights["expert_up"]), axis=-1)
    values = {
        f"{router}.weight": weights["router"].T,
        "experts.gate_up_proj": gate_up.swapaxes(1, 2),
        "experts.down_proj": weights["expert_down"].swapaxes(1, 2),
    }
    block.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in values.items()})
    return block, router


def theirs(family, per_token, x, weights, grad):
    """y and the gradients of x and weights, by torch."""
    torch = pytest.importorskip("torch")
    block, router = their_block(family, per_token, weights)
    leaf = torch.from_numpy(np.array(x)).requires_grad_()
    y = block(leaf)
    (y * torch.from_numpy(np.array(grad))).sum().backward()
    found = {name: value.grad.numpy() for name, value in block.named_parameters()}
    gate, up = np.split(found["experts.gate_up_proj"].swapaxes(1, 2), 2, axis=-1)
    return (
        y.detach().numpy(),
        leaf.grad.numpy(),
        {
            "router": found[f"{router}.weight"].T,
            "expert_gate": gate,
            "expert_up": up,
            "expert_down": found["experts.down_proj"].swapaxes(1, 2),
        },
    )


def close(one, other, atol=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("seed, skewed", [(0, False), (100, False), (0, True)])
@pytest.mark.parametrize(
    "family, per_token",
    [
        *(("mixtral", k) for k in (1, 2, 5, 8)),
        *(("qwen3_moe", k) for k in (3, 8)),
        *(("olmoe", k) for k in (1, 4, 7, 8)),
        ("phimoe", 2),
    ],
)
def test_equals_the_blocks_of_transformers(family, per_token, seed, skewed):
    x, weights, grad = inputs(seed, rows=2)
    if skewed:
        x, weights = overloaded(x, weights, per_token)
    config = BLOCKS[family][2](per_token)
    want_y, *want_grads = theirs(family, per_token, x, weights, grad)

    def objective(x, weights):
        y, aux = moe.apply(config, jax.nn.silu, x, weights, jnp.ones(x.shape[:2], bool), "float32")
        return jnp.sum(y * grad), (y, aux)

    grads, (y, aux) = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(x, weights)
    close(y, want_y)
    close(grads, want_grads)
    if skewed:
        assert aux.chosen_E[:per_token].tolist() == [24] * per_token


def counting():
    """Weights with which y[..., e] is the weight of expert e, and 0 where it wasn't chosen."""
    weights = {
        "router": normal(5, D, E),
        "expert_gate": jnp.zeros((E, D, F)),
        "expert_up": jnp.zeros((E, D, F)).at[:, 0, 0].set(1.0),
        "expert_down": jnp.zeros((E, F, D)).at[jnp.arange(E), 0, jnp.arange(E)].set(1.0),
    }
    return normal(6, 4, 12, D).at[..., 0].set(1.0), weights


def count(per_token, skewed):
    """How many (token, slot) pairs came back from each expert, and Aux's word for it."""
    x, weights = counting()
    if skewed:
        x, weights = overloaded(x, weights, per_token)
    config = experts(per_token, normalized=True)
    valid = jnp.ones(x.shape[:2], bool)
    call = jax.jit(lambda *a: moe.apply(config, jnp.ones_like, *a, valid, "float32"))
    y, aux = call(x, weights)
    y = y[..., :E] / x[..., :1]
    return (
        np.sum(np.asarray(y) > 0, axis=(0, 1)),
        np.asarray(y.sum(-1)),
        np.asarray(aux.chosen_E),
    )


def check_counts(found, per_token, skewed):
    came_back, weight, chosen = found
    np.testing.assert_array_equal(came_back, chosen)
    assert came_back.sum() == 48 * per_token
    np.testing.assert_allclose(weight, 1.0, rtol=1e-5)
    if skewed:
        assert came_back.tolist() == [48] * per_token + [0] * (E - per_token)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("per_token", [1, 2, 8])
def test_no_token_is_dropped(per_token, skewed):
    check_counts(count(per_token, skewed), per_token, skewed)


def padded():
    return jnp.ones((4, 12), bool).at[0, 5:].set(False).at[3].set(False)


@pytest.mark.parametrize("kernel", ["ragged_dot", "megablox_interpret"])
def test_padding_changes_nothing(kernel, monkeypatch):
    monkeypatch.setattr(grouped, "kernel", lambda: kernel)
    x, weights, grad = inputs(7)
    config, valid = experts(3), padded()
    found = run(config, x, weights, grad, valid)
    y, aux, (x_grad, _) = found
    assert aux.tokens == 29 and aux.chosen_E.sum() == 3 * 29
    assert not np.any(y[~valid]) and not np.any(x_grad[~valid])
    # Other padding, all of it to one expert.
    other_x, _ = overloaded(x, weights, 1)
    other = run(config, jnp.where(valid[..., None], x, 100 * other_x), weights, grad, valid)
    jax.tree.map(np.testing.assert_array_equal, found, other)
    # A row alone is as in the batch.
    alone = run(config, x[:1, :5], weights, grad[:1, :5], jnp.ones((1, 5), bool))
    close(alone[0], y[:1, :5])


@pytest.mark.parametrize("per_token", [1, 2, 8])
def test_the_tpus_kernel_gives_the_same(per_token, monkeypatch):
    x, weights, grad = inputs(8)
    config, valid = experts(per_token), padded()
    want = run(config, x, weights, grad, valid)
    monkeypatch.setattr(grouped, "kernel", lambda: "megablox_interpret")
    close(run(config, x, weights, grad, valid), want)


def test_bfloat16_is_near_and_its_routing_equal():
    x, weights, grad = inputs(9)
    x = x.astype(jnp.bfloat16)
    config, valid = experts(2, normalized=True), padded()
    y, aux, (_, grads) = run(config, x, weights, grad, valid, "bfloat16")
    want_y, want_aux, (_, want_grads) = run(
        config, x.astype(jnp.float32), weights, grad, valid, "float32"
    )
    assert y.dtype == jnp.bfloat16 and grads["expert_up"].dtype == jnp.float32
    close(aux, want_aux)
    for one, other in ((y, want_y), *((grads[n], want_grads[n]) for n in NAMES)):
        error = np.abs(np.asarray(one, np.float32) - other).max()
        assert 0 < error < 0.02 * np.abs(other).max()


# ---- on a mesh ----

MESHES = {
    "expert 4": {"expert": 4},
    "expert 2 x tensor 2": {"expert": 2, "tensor": 2},
    "fsdp 2 x expert 2": {"fsdp": 2, "expert": 2},
    "context 2 x expert 2": {"context": 2, "expert": 2},
    "fsdp 2 x context 2": {"fsdp": 2, "context": 2},
    "tensor 4": {"tensor": 4},
}
# (experts per token, all tokens to the same ones)
CASES = [(2, False), (2, True), (8, False)]
# With 8 of 8 experts the routing is of no interest but where experts are split.
RUNS = [
    (name, case)
    for name, axes in MESHES.items()
    for case in (CASES if "expert" in axes else CASES[:2])
]
COUNTS = [(name, case) for name, case in RUNS if "expert" in MESHES[name] and case != CASES[0]]


def mesh_of(axes):
    devices = jax.devices()[: math.prod(axes.values())]
    return sharding.make(sharding.Mesh(**{"data": 1, "fsdp": 1, "tensor": 1} | axes), devices)


def outcome(axes, per_token, skewed, config=None):
    x, weights, grad = inputs(11)
    if skewed:
        x, weights = overloaded(x, weights, per_token)
    config = config or experts(per_token, normalized=True)
    with contextlib.nullcontext() if axes is None else jax.set_mesh(mesh_of(axes)):
        return jax.tree.map(np.asarray, run(config, x, weights, grad, padded()))


def with_the_tpus_kernel(axes, per_token, skewed):
    plain, grouped.kernel = grouped.kernel, lambda: "megablox_interpret"
    try:
        return outcome(axes, per_token, skewed)
    finally:
        grouped.kernel = plain


def refusals():
    """The messages of what a mesh cannot do."""
    x, weights, grad = inputs(12)
    valid, found = padded(), []

    def attempt(axes, **changes):
        given = {"x": x, "weights": weights, "valid": valid} | changes
        try:
            with jax.set_mesh(mesh_of(axes)):
                config = experts(2, count=given["weights"]["router"].shape[1])
                run(config, given["x"], given["weights"], grad, given["valid"])
            found.append("nothing")
        except ValueError as error:
            found.append(str(error))

    attempt({"expert": 4}, weights={n: w[:, :6] if n == "router" else w[:6]
                                    for n, w in weights.items()})  # fmt: skip
    attempt({"expert": 2}, x=x[:3], valid=valid[:3])
    attempt({"context": 4}, x=x[:, :6], valid=valid[:, :6])
    return found


def compiled(axes):
    """The compiled forward and backward pass."""
    x, weights, grad = inputs(13)
    mesh, logical = mesh_of(axes), {"router": ("embed", None), **moe._WEIGHTS}
    placed = jax.device_put(weights, sharding.tree(mesh, logical, weights))

    def objective(x, weights):
        y, _ = moe.apply(experts(2), jax.nn.silu, x, weights, padded(), "float32")
        return jnp.sum(y * grad)

    with jax.set_mesh(mesh):
        x = jax.device_put(
            x, jax.sharding.NamedSharding(mesh, sharding.spec(("batch", None, None)))
        )
        return jax.jit(jax.grad(objective, (0, 1))).lower(x, placed).compile().as_text()


def main(out):
    found = {"refusals": refusals(), "text": compiled({"fsdp": 4})}
    for case in CASES:
        found[None, case] = outcome(None, *case)
    for name, case in RUNS:
        found[name, case] = outcome(MESHES[name], *case)
    for name, case in COUNTS:
        with jax.set_mesh(mesh_of(MESHES[name])):
            found["count", name, case] = count(*case)
    for name in (None, "expert 2 x tensor 2"):
        found["sparse", name] = outcome(MESHES.get(name), 2, False, SPARSE)
    found["megablox"] = with_the_tpus_kernel({"expert": 2}, 2, True)
    pathlib.Path(out).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """What `main` made on four emulated devices."""
    out = tmp_path_factory.mktemp("experts") / "out.pickle"
    devices.run_script(__file__, out)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


@pytest.mark.parametrize("name, case", RUNS)
def test_the_mesh_changes_no_number(name, case, four_devices):
    close(four_devices[name, case], four_devices[None, case])


@pytest.mark.parametrize("name, case", COUNTS)
def test_no_token_is_dropped_on_a_mesh(name, case, four_devices):
    check_counts(four_devices["count", name, case], *case)


def test_sparsemixer_on_a_mesh(four_devices):
    close(four_devices["sparse", "expert 2 x tensor 2"], four_devices["sparse", None])


def test_the_tpus_kernel_on_a_mesh(four_devices):
    close(four_devices["megablox"], four_devices[None, (2, True)])


def test_a_mesh_refuses_what_does_not_divide(four_devices):
    too_few, rows, length = four_devices["refusals"]
    assert "expert_gate: axis 'experts' of size 6 does not divide over mesh expert 4" in too_few
    assert "experts' input: axis 'batch' of size 3 does not divide" in rows
    assert "experts' input: axis 'length' of size 6 does not divide over mesh context 4" in length


def test_the_batch_is_not_sorted_across_devices(four_devices):
    text = four_devices["text"]
    assert "all-to-all" not in text and "collective-permute" not in text
    # A device sorts the pairs of its own 12 tokens, not those of all 48.
    sorts = [line for line in text.splitlines() if " sort(" in line]
    assert sorts and all("[24]" in line or "[12,8]" in line for line in sorts)


if __name__ == "__main__":
    main(sys.argv[1])
