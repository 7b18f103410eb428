# SPDX-License-Identifier: Apache-2.0
"""Four devices: read onto them and exported from them, with no more than a tensor on the host.

What needs four devices runs in one process that poses as having them: this file as a script.
"""

import json
import pathlib
import sys
import tracemalloc

import devices
import jax
import pytest
import tiny_model as tiny
import tokenizers

from midjax import export
from midjax.model import architecture, hf, hf_arrays, hf_rows, sharding, transformer

MODELS = {
    "dense": {"tied_head": True, "kv_heads": 2},
    "experts": {
        "family": "mixtral",
        "experts": architecture.Experts(count=8, per_token=2, ffn_dim=48, normalized=True),
    },
}
MESHES = {
    "dense": ({"fsdp": 2, "tensor": 2}, {"context": 2, "fsdp": 2}),
    "experts": ({"expert": 4}, {"expert": 2, "tensor": 2}),
}
CASES = [(kind, number) for kind in MODELS for number in range(2)]


# Experts so large that the host would show a layer of them: 1 MiB each, 8 to a layer.
WIDE = {
    "family": "mixtral", "dim": 256, "layers": 2, "ffn_dim": 1024,
    "experts": architecture.Experts(count=8, per_token=2, ffn_dim=1024, normalized=True),
}  # fmt: skip
PIECE_BYTES = 1 << 16
EXPERT_BYTES = 1 << 20


def placed(folder: str, sizes: dict[str, int]):
    """(config, parameters) straight on a mesh of four devices, and the mesh as a config."""
    mesh = sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
    config = hf.read_config(folder)
    shapes = transformer.abstract(config)
    shardings = sharding.tree(sharding.make(mesh), transformer.logical_axes(config), shapes)
    targets = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    with jax.set_mesh(sharding.make(mesh)):  # as an import has it
        return *hf.load(folder, targets=targets), mesh


def peak_bytes(work) -> int:
    """What NumPy and Python held at most; arrays of devices are not among it."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak


def main(folder: pathlib.Path) -> None:
    results = {}
    sys.modules["torch"] = None  # type: ignore[assignment]  # as where it is not installed
    for kind, number in CASES:
        config, params, mesh = placed(str(folder / kind), MESHES[kind][number])
        wanted = export.Export(
            run="runs/tiny", step=3, output=str(folder / f"{kind}-{number}"),
            tokenizer=str(folder / "tokenizer"), dtype="float32", mesh=mesh,
        )  # fmt: skip
        result = export.run(wanted, config, params, {})
        results[f"{kind}-{number}"] = [result.compared_tensors, result.max_difference]
    hf_arrays._PIECE_BYTES = hf_rows.PIECE_BYTES = PIECE_BYTES
    wide = str(folder / "wide"), {"expert": 4}
    config, params, _ = placed(*wide)  # compiled before it is measured
    results["import peak"] = peak_bytes(lambda: placed(*wide))
    out = str(folder / "wide again")
    hf.save(out, config, params, "float32")
    results["export peak"] = peak_bytes(lambda: hf.save(out, config, params, "float32"))
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("export")
    for kind, settings in (MODELS | {"wide": WIDE}).items():
        config = tiny.config(**settings)
        hf.save(str(folder / kind), config, tiny.params(config), "float32")
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0")
    (folder / "tokenizer").mkdir()
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    devices.run_script(__file__, folder)
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_an_export_from_four_devices_is_that_from_one(folder, results, kind, number):
    tensors, difference = results[f"{kind}-{number}"]
    assert tensors > 20 and difference == 0
    for name in ("model.safetensors", "config.json"):
        found = (folder / f"{kind}-{number}" / name).read_bytes()
        if name == "config.json":
            found, want = (json.loads(x) for x in (found, (folder / kind / name).read_bytes()))
            assert found == want
        else:
            assert found == (folder / kind / name).read_bytes()


def test_experts_pass_through_the_host_one_at_a_time(folder, results):
    """Not a layer's eight: the one being read, and the one before, which a CPU lets go late."""
    assert results["import peak"] < 3 * EXPERT_BYTES
    again = (folder / "wide again" / "model.safetensors").read_bytes()
    assert again == (folder / "wide" / "model.safetensors").read_bytes()


def test_an_export_holds_pieces_of_a_tensor(results):
    """Several of 64 KiB, in our layout and in theirs, and never the whole of one."""
    assert results["export peak"] < EXPERT_BYTES / 2


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
