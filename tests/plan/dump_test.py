# SPDX-License-Identifier: Apache-2.0
"""What the compiler writes down beside a program."""

import jax
import jax.numpy as jnp
import pytest
import tpu_compiler

from midjax.plan import dump, hlo


def lowered(device):
    place = jax.sharding.SingleDeviceSharding(device)
    return jax.jit(lambda x: jnp.tanh(x) * 2).lower(
        jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=place)
    )


def test_the_dumped_text_is_the_executables_own():
    found = dump.compiled(lowered(tpu_compiler.devices("v5e:2x2")[0]))
    ours = hlo.parse(found.text)
    theirs = hlo.parse(found.executable.as_text())
    assert set(ours.computations) == set(theirs.computations)
    for name, computation in ours.computations.items():
        same = theirs.computations[name].instructions
        assert [(one.name, one.opcode, one.type_text, one.cycles) for one in same] == [
            (one.name, one.opcode, one.type_text, one.cycles) for one in computation.instructions
        ]
    assert found.buffers.startswith("BufferAssignment")
    assert "InstructionSequence" in found.live_ranges


def test_another_compiler_writes_other_files():
    with pytest.raises(dump.NoDumpError, match="Only libtpu's is read"):
        dump.compiled(lowered(jax.devices("cpu")[0]))
