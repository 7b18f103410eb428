# SPDX-License-Identifier: Apache-2.0
"""The run directory that an import writes, on one device and on four."""

import dataclasses
import json
import pathlib
import sys

import devices
import imported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax import checkpoint, config, lineage
from midjax.importing import convert, foreign, recipe
from midjax.model import architecture, sharding

MESH = sharding.make(imported.MESH, jax.devices()[:1])


def opened():
    return imported.maxtext_source().open(imported.model())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("convert") / "run")
    record = convert.write(opened(), output=folder, mesh=MESH)
    assert record == json.loads((pathlib.Path(folder) / "import.json").read_text())
    return folder


def test_the_manifest_and_the_record(run_dir):
    facts = checkpoint.read_facts(run_dir, 17)
    manifest = facts["manifest"]
    assert config.from_plain(architecture.TransformerConfig, manifest["model"]) == imported.model()
    assert manifest["tokenizer_hash"] is None and facts["data"] == {}
    path = str(imported.DATA / "maxtext_tiny" / "16")
    origin = {"format": "maxtext", "path": path, "step": 17, "decoder_block": "llama2",
              "model_name": "default"}  # fmt: skip
    assert lineage.of(run_dir, 17) == [
        {"imported from": origin},
        {"run": run_dir, "step": 17, "hash": manifest["seal"]},
    ]
    record = json.loads((pathlib.Path(run_dir) / "import.json").read_text())
    assert record["from"] == origin and record["norms"] == manifest["norms"]
    assert record["made of"]["layers/wq"] == [
        "params/params/decoder/layers/self_attention/query/kernel"
    ]
    assert len(record["left out"]) == 15  # 12 random streams, the step and two counts


def test_a_folder_with_checkpoints_is_not_written_to(run_dir):
    before = checkpoint.read_facts(run_dir, 17)
    with pytest.raises(foreign.ForeignError, match=r"holds the checkpoints \[17\] already"):
        convert.write(opened(), output=run_dir, mesh=MESH)
    assert checkpoint.read_facts(run_dir, 17) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 2.0 * jnp.moveaxis(x, 1, 0),  # scaled: Adam would take other steps
        lambda x: jnp.repeat(jnp.moveaxis(x, 1, 0)[:1], 3, axis=0),  # one layer three times
    ],
)
def test_a_change_that_does_not_only_rearrange_is_found_out(tmp_path, change):
    good = opened()
    name = "layers/wq"
    take = dataclasses.replace(good.params[name], change=change)
    wrong = dataclasses.replace(good, params={**good.params, name: take})
    with pytest.raises(foreign.ForeignError, match="may only rearrange. Nothing was written"):
        convert.write(wrong, output=str(tmp_path / "run"), mesh=MESH)
    assert not (tmp_path / "run").exists()


def test_an_offset_is_added_to_parameters_and_not_to_moments(tmp_path, run_dir):
    good = opened()
    take = dataclasses.replace(good.params["final_norm"], offset=-1.0)
    shifted = dataclasses.replace(good, params={**good.params, "final_norm": take})
    record = convert.write(shifted, output=str(tmp_path / "run"), mesh=MESH)
    before = checkpoint.read_facts(run_dir, 17)["manifest"]
    assert record["norms"]["mu"] == before["norms"]["mu"]
    found, _ = imported.restored(str(tmp_path / "run"), 17, imported.model())
    kept, _ = imported.restored(run_dir, 17, imported.model())
    np.testing.assert_array_equal(found["final_norm"], kept["final_norm"] - 1.0)
    np.testing.assert_array_equal(found["embed"], kept["embed"])


def test_spread_splits_the_largest_axis_that_divides():
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    assert convert.spread((8, 3, 12), mesh).spec == jax.sharding.PartitionSpec(
        None, None, ("fsdp",)
    )
    assert convert.spread((5, 3), mesh).spec == jax.sharding.PartitionSpec(None, None)


def on_four_devices(folder: str) -> None:
    """Run in a process of its own, which poses as having four devices."""
    mesh = sharding.Mesh(data=1, fsdp=2, tensor=2)
    source = imported.maxtext_source()
    recipe.run(imported.importing(pathlib.Path(folder), source, imported.model(), mesh=mesh))


def test_four_devices_write_the_same(tmp_path, run_dir):
    devices.run_script(__file__, tmp_path / "four")
    one, four = (
        checkpoint.read_facts(folder, 17)["manifest"]
        for folder in (run_dir, str(tmp_path / "four"))
    )
    assert one["digests"] == four["digests"] and one["arrays"] == four["arrays"]


if __name__ == "__main__":
    on_four_devices(sys.argv[1])
