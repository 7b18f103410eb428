# SPDX-License-Identifier: Apache-2.0
"""What fills a chip's memory, against the compiler's own peak."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tpu_compiler
from jax.sharding import NamedSharding, PartitionSpec

from midjax.plan import dump, memory, origins

LAYERS, DIM, ROWS, CHIPS = 8, 2048, 32_768, 4
MOMENTUM, RATE = 0.9, 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    opt_state: dict
    step: jax.Array


def train_step(state: State, batch: dict) -> State:
    def loss(params):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), PartitionSpec())
            return jnp.tanh(x @ w), None

        out = jax.lax.scan(jax.checkpoint(layer), batch["x"], params["w"])[0]
        return jnp.mean(out.astype(jnp.float32) ** 2)

    gradients = jax.grad(loss)(state.params)
    mu = jax.tree.map(lambda m, g: MOMENTUM * m + g, state.opt_state["mu"], gradients)
    params = jax.tree.map(lambda p, m: p - RATE * m, state.params, mu)
    return State(params, {"mu": mu}, state.step + 1)


def program(topology: str) -> dump.Program:
    mesh = jax.make_mesh(
        (CHIPS,),
        ("fsdp",),
        devices=tpu_compiler.devices(topology),
        axis_types=(jax.sharding.AxisType.Auto,),
    )

    def array(shape, dtype, *spec):
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    weights = {"w": array((LAYERS, DIM, DIM), jnp.float32, None, "fsdp")}
    state = State(weights, {"mu": weights}, array((), jnp.int32))
    batch = {"x": array((ROWS, DIM), jnp.bfloat16, "fsdp")}
    with jax.set_mesh(mesh):
        return dump.compiled(jax.jit(train_step, donate_argnums=0).lower(state, batch))


@pytest.fixture(scope="module", params=["v5e:2x2", "v5p:2x2x1"])
def compiled(request) -> dump.Program:
    return program(request.param)


def test_the_parts_are_the_compilers_peak(compiled):
    found = memory.analyse(compiled)
    assert sum(part.bytes for part in found.parts) == found.peak_bytes
    assert found.other_memory_bytes == 0
    assert abs(found.unexplained_bytes) <= 4096  # tables of addresses
    assert found.compiler_peak_bytes == found.peak_bytes + found.unexplained_bytes
    assert max(size for _, size in found.timeline) == found.peak_bytes
    assert (found.peak_position, found.peak_bytes) in found.timeline
    assert (
        found.required_bytes == found.peak_bytes + found.fragmentation_bytes + found.program_bytes
    )
    assert 0 <= found.fragmentation_bytes < 0.03 * found.required_bytes


def test_arguments_are_told_by_their_paths(compiled):
    found = memory.analyse(compiled).by_kind()
    shard = LAYERS * DIM * DIM * 4 // CHIPS
    assert found[memory.PARAMETERS] == found[memory.MU] == shard
    assert found[memory.BATCH] == ROWS // CHIPS * DIM * 2


def test_only_the_input_of_each_layer_is_kept(compiled):
    found = memory.analyse(compiled).by_kind()
    assert found[origins.SAVED] == LAYERS * ROWS // CHIPS * DIM * 2  # bfloat16


def test_names_may_be_given(compiled):
    names = ["all.params.w", "mine", "step", "batch.x"]
    parts = {part.label: part.kind for part in memory.analyse(compiled, names).parts}
    assert parts["all.params.w"] == memory.PARAMETERS
    assert parts["mine"] == memory.OTHER
    with pytest.raises(memory.ArgumentsError, match="2 names are given for 4 arguments"):
        memory.analyse(compiled, names[:2])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("state.params['layers']['wq']", memory.PARAMETERS),
        ("state.params['params']['decoder']['mu_gate']", memory.PARAMETERS),
        ("state.opt_state['moments']['mu']['embed']", memory.MU),
        ("state.opt_state[0].nu['params']['embed']", memory.NU),
        ("state['model']['decoder']['logits_dense']['kernel'].value", memory.PARAMETERS),
        ("state['optimizer']['opt_state'][0]['nu']['decoder']['norm']", memory.NU),
        ("state.opt_state['adam_count']", memory.OPTIMIZER),
        ("batch.weights", memory.BATCH),
        ("data['inputs_position']", memory.BATCH),
        ("state.step", memory.OTHER),
        ("weights", memory.OTHER),
    ],
)
def test_kinds_of_arguments(name, kind):
    assert memory.kind_of(name) == kind
