# SPDX-License-Identifier: Apache-2.0
"""A plan as text."""

import dataclasses

from midjax.plan import analysis, grid, origins, predict, search, table

VERSIONS = {"libtpu": "0.0.42.1", "jax": "0.10.2"}


def found() -> analysis.Found:
    return analysis.Found(
        peak_bytes=12_000_000_000,
        memory={
            "parameters": 4_000_000_000, "gradients": 7_990_000_000, "batch": 6_000_000,
            "constants": 4_000_000, "new results": 0,
        },
        largest=(), timeline=(), positions=0, peak_position=0, peak_op_name="",
        host_bytes=3_000_000_000,
        step_seconds=2.0, parts={"matrix": 1.5, "vector": 0.4, "collectives": 0.1, "host": 0.0},
        collectives={
            "fsdp": {
                "bytes_sent": 3e9, "seconds": 0.3, "hidden_seconds": 0.2, "exposed_seconds": 0.1,
            },
        },
        hidden_host_seconds=0.5, host_transfer_bytes=6e9, matrix_flops=3e14, kernel_flops=1e14,
        roofline=(), notes={},
    )  # fmt: skip


def step(outcome="fits", **kwargs) -> predict.Step:
    given = {
        "batch_rows": 64, "row_tokens": 8192, "microbatches": 2, "remat": "full", "layers": 4,
        "mesh": {"data": 2, "fsdp": 32}, "updates": 10,
    }  # fmt: skip
    if outcome == "fits":
        given |= {"found": found(), "model_flops": 3e14, "tokens": 524288,
                  "tokens_per_second": 262144.0, "utilisation": 0.4567}  # fmt: skip
    return predict.Step(outcome=outcome, **(given | kwargs))


def stage(*steps, **kwargs) -> predict.Stage:
    given = {
        "name": "anneal", "slice": "v5e-64", "chips": 64, "tokens": 5_242_880, "updates": 10,
        "seconds": 20.0, "chip_hours": 0.3556, "cost_usd": None,
        "checkpoint_bytes": 96_000_000_000, "checkpoint_seconds": 120.0,
    }  # fmt: skip
    return predict.Stage(steps=steps, **(given | kwargs))


def text(*stages, searches=(), prices=None) -> str:
    return table.text(stages, searches, prices=prices or {}, versions=VERSIONS)


def test_a_row_says_all_and_its_parts_add_up():
    said = text(stage(step()))
    assert "Nothing was measured" in said and "v5e-64: 64 chips on 16 hosts" in said
    (row,) = (line for line in said.splitlines() if line.startswith("anneal"))
    for cell in ("64 x 8,192", "data 2 x fsdp 32", "12.00 GB", "2.00 s", "262K", "45.7 %", "0.4"):
        assert cell in row
    assert "memory: gradients 7.99 GB, parameters 4.00 GB, the rest 10 MB = 12.00 GB" in said
    assert "step: matrix 1.50 s, vector 400 ms, collectives 100 ms = 2.00 s" in said
    assert "collectives over fsdp: 300 ms for 3.00 GB, 200 ms of it hidden" in said
    assert "host: 6.00 GB to and fro, 500 ms of it hidden; 3.00 GB of its memory" in said
    assert "300 T of the model, 400 T of the hardware" in said
    assert "checkpoint: 96.00 GB, 2m00s to write" in said
    assert "USD" not in said


def test_activations_are_told_by_layer():
    held = {origins.SAVED: 8_000_000_000, "parameters": 4_000_000_000}
    arrays = ((origins.SAVED, "mlp/gate", 6_000_000_000), (origins.SAVED, "dot", 2_000_000_000))
    full = dataclasses.replace(found(), memory=held, largest=(*arrays, ("gradients", "x", 1)))
    said = text(stage(step(found=full)))
    assert "activations kept: 2.00 GB for each of 4 layers: mlp/gate 1.50 GB, dot 0.50 GB" in said
    assert "activations kept" not in text(stage(step()))


def test_cost_is_there_with_a_price():
    said = text(stage(step(), cost_usd=1234.5), prices={"v5e-64": 1.2})
    assert "at 1.2 USD per chip and hour" in said and "1,234" in said


def test_what_does_not_fit_says_how_much_is_missing():
    lacking = step("out of memory", missing_bytes=1_500_000_000, said="Used 17.31G of 15.75G")
    said = text(stage(lacking, seconds=None, chip_hours=None, checkpoint_seconds=None))
    assert "out of memory" in said
    assert "1.50 GB a chip are missing: Used 17.31G of 15.75G" in said


def test_columns_are_aligned():
    rows = text(stage(step(), step(batch_rows=8, said=None)), stage(step(), name="x"))
    lines = [line for line in rows.splitlines() if " x 8,192" in line]
    assert len(lines) == 3
    assert len({line.index("data 2") for line in lines}) == 1


def test_a_search_marks_its_front_and_gives_its_overrides():
    mesh = {"data": 1, "fsdp": 64, "context": 1, "expert": 1, "tensor": 1}
    one = grid.Setting(
        mesh=mesh,
        microbatches=2,
        remat="full",
        state_sharding="as_params",
        state_memory="device",
        fsdp_sums="at_once",
    )
    rows = (
        search.Row(setting=one, overrides=one.overrides(), step=step(), on_front=True),
        search.Row(
            setting=dataclasses.replace(one, remat="none"),
            overrides="--gin.not=this",
            step=step("out of memory", missing_bytes=2_000_000_000),
        ),
    )
    said = text(
        searches=(
            search.Searched(stage="s", slice="v5e-64", size=9, rows=rows, left_out={"why": 7}),
        )
    )
    assert "full, sums at once" in said and "none, sums at once" in said
    assert "2 of 9 settings compiled" in said and "7: why" in said
    assert "--gin.Mesh.fsdp=64" in said and "--gin.not=this" not in said
    assert "2.00 GB a chip are missing" in said
