# SPDX-License-Identifier: Apache-2.0
"""Every family on four devices: loaded straight onto the mesh, transformers' logits.

What needs four devices runs in one process that poses as having them: this file as a script.
"""

import dataclasses
import pathlib
import sys

import devices
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from midjax.model import context, hf, sharding, transformer
from midjax.model.families import registry

# Vocabularies and key heads that the tensor axis does not divide are in parity.BASE and here.
SETTINGS = {
    "llama": {"num_key_value_heads": 1},
    "mistral": {"sliding_window": 9, "num_key_value_heads": 4},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {"head_dim": 20},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "head_dim": 20,
        "mlp_only_layers": [0],
    },
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
            "short_factor": [1.0 + 0.1 * i for i in range(6)],
            "long_factor": [2.0 + 0.7 * i for i in range(6)],
            "original_max_position_embeddings": 32,
        },
        "original_max_position_embeddings": 32,
    },
    "phimoe": {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True},
    "olmo2": {},
    "olmo3": {"num_hidden_layers": 4, "sliding_window": 6},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {"head_dim": 20, "sliding_window": 6},
    "gemma3_text": {"head_dim": 20, "sliding_window": 6, "num_hidden_layers": 7},
    "smollm3": {"num_hidden_layers": 4, "num_key_value_heads": 4},
}
MESHES = {
    "fsdp x tensor": {"fsdp": 2, "tensor": 2},
    "context x tensor": {"context": 2, "tensor": 2},
    "expert x context": {"expert": 2, "context": 2},
    "expert x tensor": {"expert": 2, "tensor": 2},
    "fsdp x context": {"fsdp": 2, "context": 2},
}
# Where layers are computed by each device on its own tokens (`model.fsdp`), if they have a policy.
BY_HAND = "fsdp x context"
# The axis `expert` splits nothing else: without experts it is one more of fsdp. Experts without it
# are in mesh_test.py and tests/model/moe_test.py.
MIXTURES = ("mixtral", "olmoe", "phimoe", "qwen3_moe")
RUNS = [
    (kind, mesh)
    for kind in sorted(SETTINGS)
    for mesh in MESHES
    if (kind in MIXTURES) == ("expert" in mesh)
    or (kind, mesh) == ("qwen3_moe", BY_HAND)  # whose first layer has no experts
]


def logits_on(folder: str, sizes: dict[str, int]) -> np.ndarray:
    """[2, T, V] of the packed row, twice, on four devices; the parameters never on one."""
    config = hf.read_config(folder)
    mesh = sharding.make(sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes)))
    shapes = transformer.abstract(config)
    shardings = sharding.tree(mesh, transformer.logical_axes(config), shapes)
    targets = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    config, params = hf.load(folder, targets=targets)
    if sizes == MESHES[BY_HAND]:
        config = dataclasses.replace(config, remat="full")
    for leaf, target in zip(jax.tree.leaves(params), jax.tree.leaves(targets), strict=True):
        assert leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim)
    row = parity.packed(parity.documents(config.vocab_size), 96)
    rows = [np.repeat(np.asarray(x), 2, axis=0) for x in row]
    placed = jax.device_put(context.arrange(rows, mesh.shape), sharding.batch(mesh, 2))
    with jax.set_mesh(mesh):
        found = jax.jit(transformer.apply, static_argnums=0)(config, params, *placed)
    found = np.asarray(jnp.moveaxis(found, 2, 1))
    return np.moveaxis(context.restore(found, mesh.shape), 1, 2)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """(kind, mesh) -> logits on four devices, and transformers' of each document alone."""
    folder = tmp_path_factory.mktemp("families")
    want = {}
    for kind, settings in SETTINGS.items():
        model = parity.torch_model(kind, 7, **settings)
        model.save_pretrained(str(folder / kind))
        texts = parity.documents(parity.BASE["vocab_size"])
        want[kind] = np.concatenate([parity.torch_logits(model, text) for text in texts])
    devices.run_script(__file__, folder)
    return folder, want


def test_the_table_is_covered():
    assert set(SETTINGS) == set(registry.FAMILIES)


@pytest.mark.parametrize(("kind", "mesh"), RUNS)
def test_four_devices_give_the_logits_of_transformers(kind, mesh, computed):
    folder, want = computed
    found = np.load(folder / f"{kind}-{mesh}.npy")
    for row in found:
        np.testing.assert_allclose(row[: len(want[kind])], want[kind], atol=5e-5)


def main(folder: pathlib.Path) -> None:
    for kind, mesh in RUNS:
        np.save(folder / f"{kind}-{mesh}.npy", logits_on(str(folder / kind), MESHES[mesh]))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
