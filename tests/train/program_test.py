# SPDX-License-Identifier: Apache-2.0
"""The jitted step that `train` and `plan` share."""

import jax
import pytest
import tiny_run

from midjax.model import sharding, torus
from midjax.train import loop, program, restore
from midjax.train.optimizers import optimizer as optimizer_lib


def test_it_is_the_loops_own_step(tmp_path):
    """Of a recipe alone, without data or checkpoint: the same program as of a run that began."""
    tiny_run.write_tokens(tmp_path / "tokens")
    config = tiny_run.train(tmp_path)
    begun = loop.begin(config)
    mesh = sharding.make(config.mesh)
    state = program.state(config, optimizer_lib.make(config.optimizer), mesh)
    assert state == restore.abstract_state(begun.prepared, begun.mesh)
    steps = program.steps(
        config, begun.prepared.optimizer, begun.prepared.schedule, state, mesh, (tiny_run.B,)
    )
    batch, _ = next(
        begun.prepared.loader.batches(next_row=0, first_step=1, batch_rows={1: tiny_run.B})
    )

    def text(step, state):
        with jax.set_mesh(mesh):
            return step.lower(state, batch).as_text()

    (ours,), (theirs,) = steps.values(), begun.early.steps.values()
    assert text(ours, state) == text(theirs, begun.state)


def test_it_is_traced_for_the_torus_of_its_mesh(tmp_path, monkeypatch):
    config = tiny_run.train(tmp_path)
    mesh = sharding.make(config.mesh)
    state = program.state(config, optimizer_lib.make(config.optimizer), mesh)
    here, seen, want = torus.Torus(sizes=(2, 2)), [], (mesh, ("fsdp", "context"), "at_once")
    monkeypatch.setattr(torus, "of", lambda *asked: here if asked == want else None)

    def step(state):
        seen.append(torus.current())
        return state, {}

    program.jitted(step, state, mesh, "at_once").lower(state)
    assert seen == [here] and torus.current() == torus.Torus()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"microbatches": 8, "mesh": sharding.Mesh(data=1, fsdp=2, tensor=1)}, "A microbatch"),
        ({"mesh": sharding.Mesh(data=1, fsdp=1, tensor=1, context=3)}, "does not divide over mesh"),
    ],
)
def test_what_does_not_fit_the_mesh_is_told(tmp_path, wrong, said):
    config = tiny_run.train(tmp_path, **wrong)
    shape = {name: getattr(config.mesh, name) for name in sharding.MESH_AXES}
    devices = [jax.devices()[0]]
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))

    class Mesh:
        shape = mesh.shape

        class devices:
            flat = devices

    with pytest.raises(ValueError, match=said):
        program.check(config, Mesh, (tiny_run.B,))
