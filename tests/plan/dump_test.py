# SPDX-License-Identifier: Apache-2.0
"""What the compiler writes down beside a program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tpu_compiler

from midjax.hardware import slices
from midjax.plan import analysis, cost, dump, hlo


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


def test_both_texts_of_a_program_cost_the_same():
    """They spell what is copied to VMEM beside other work in two ways."""

    def products(weights, x):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    place = jax.sharding.SingleDeviceSharding(tpu_compiler.devices("v5e:2x2")[0])
    square = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=place)
    found = dump.compiled(jax.jit(products).lower([square] * 6, square))
    texts = [found.text, found.executable.as_text()]
    assert [(" async-start(" in text, " slice-start(" in text) for text in texts] == [
        (True, False),
        (False, True),
    ]
    knobs = dataclasses.asdict(analysis.Knobs())
    costs = [cost.estimate(text, slices.parse("v5e-1"), {}, **knobs) for text in texts]
    assert costs[0].parts == costs[1].parts and costs[0].prefetch_bytes == costs[1].prefetch_bytes
    assert costs[0].parts["vector"] == 0 and costs[0].parts["prefetch"] > 0


def test_another_compiler_writes_other_files():
    with pytest.raises(dump.NoDumpError, match="Only libtpu's is read"):
        dump.compiled(lowered(jax.devices("cpu")[0]))
