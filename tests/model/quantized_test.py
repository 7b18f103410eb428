# SPDX-License-Identifier: Apache-2.0
"""8-bit products against NumPy's of the same scales; a model trained with them; two devices."""

import pathlib
import pickle
import re
import sys

import devices
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_model

from midjax.model import architecture, context, quantized, sharding, transformer

INT8 = architecture.Quantization(dtype="int8")
CASES = {
    "int8": INT8,
    "int8 none": architecture.Quantization(dtype="int8", gradients="none"),
    "int8 all": architecture.Quantization(dtype="int8", gradients="all"),
    "float8 all": architecture.Quantization(dtype="float8", gradients="all"),
}
EACH = pytest.mark.parametrize("how", CASES.values(), ids=CASES.keys())
# With a loop over layers, remat and the chunked loss.
LOOP = {"layers": 2, "remat": "save_projections", "loss_chunk_tokens": 12}


# ---- one product ----


def rounded(x, summed, kind):
    """x as 8 bits can say it, with one scale for what is not summed; in float64."""
    largest = np.abs(x).max(axis=summed, keepdims=True)
    if kind == "int8":
        scale = largest / 127.5
        return np.clip(np.rint(x / scale), -128, 127) * scale
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[kind]
    scale = largest / float(ml_dtypes.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(np.float64) * scale


def reference(how, x, weights, grad):
    """Result, gradient of x and of the weights; x and grad with all rows along one axis."""
    forward, backward = ("int8", "int8") if how.dtype == "int8" else ("e4m3", "e5m2")
    found = rounded(x, 1, forward) @ rounded(weights, 0, forward)
    x_grad, weights_grad = grad @ weights.T, x.T @ grad
    if how.gradients != "none":
        x_grad = rounded(grad, 1, backward) @ rounded(weights, 1, forward).T
    if how.gradients == "all":
        weights_grad = rounded(x, 0, forward).T @ rounded(grad, 0, backward)
    return found, x_grad, weights_grad


def given(rows, seed=0):
    """x, weights and a gradient whose rows or columns differ in size a thousandfold."""
    rng = np.random.default_rng(seed)
    count = np.prod(rows)
    sizes = 10.0 ** rng.uniform(-2, 1, (count, 1)), 10.0 ** rng.uniform(-2, 1, (1, 40))
    x, grad = (sizes[0] * rng.standard_normal((count, n)) for n in (48, 40))
    weights = sizes[1] * rng.standard_normal((48, 40))

    def settled(array):
        """The largest of each row and column is positive: the steps of int8 go from -128 to 127, so
        that minus the largest, -127.5, is as near to the one as to the other."""
        size = np.abs(array)
        top = (size == size.max(0)) | (size == size.max(1, keepdims=True))
        return jnp.asarray(np.where(top, size, array), jnp.float32)

    x, weights, grad = (settled(array) for array in (x, weights, grad))
    return x.reshape(*rows, -1), weights, grad.reshape(*rows, -1)


@EACH
@pytest.mark.parametrize("rows", [(24,), (3, 8)], ids=["flat", "B T"])
def test_products_are_numpys_of_the_same_rounding(how, rows):
    x, weights, grad = given(rows)
    found, backward = jax.vjp(lambda x, weights: quantized.matmul(how, x, weights), x, weights)
    flat = (np.float64(array).reshape(-1, array.shape[-1]) for array in (x, weights, grad))
    for one, want in zip((found, *backward(grad)), reference(how, *flat), strict=True):
        # A value on the edge between two of the format may fall to either side in float32.
        close = np.isclose(np.reshape(one, want.shape), want, rtol=1e-4, atol=1e-5)
        assert close.mean() > 0.97
        np.testing.assert_allclose(
            np.reshape(one, want.shape), want, atol=2e-2 * np.abs(want).max()
        )


@pytest.mark.parametrize("how, most", [(INT8, 0.012), (CASES["float8 all"], 0.05)])
def test_the_error_is_that_of_8_bits_and_bfloat16_adds_little(how, most):
    """Of 256 steps from -4 to 4 standard deviations, or 3 bits of mantissa, on both operands."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((64, 256)), rng.standard_normal((256, 64))
    for dtype in (jnp.float32, jnp.bfloat16):
        given = (jnp.asarray(array, dtype) for array in (x, weights))
        found = quantized.matmul(how, *given)
        assert found.dtype == dtype
        error = np.linalg.norm(np.float64(found) - x @ weights) / np.linalg.norm(x @ weights)
        assert most / 4 < error < most


def test_zeros_and_what_is_not_a_number():
    x, weights, _ = given((4,))
    x = x.at[1].set(0).at[2, 3].set(jnp.nan).at[3, 0].set(jnp.inf)
    found = np.asarray(quantized.matmul(INT8, x, weights))
    assert np.isfinite(found[0]).all() and (found[1] == 0).all() and np.isnan(found[2:]).all()


def test_a_sum_that_int32_may_not_hold_is_refused():
    x, grad = (jax.ShapeDtypeStruct((131_072, n), jnp.float32) for n in (8, 4))
    weights = jax.ShapeDtypeStruct((8, 4), jnp.float32)

    def backward(how):
        return jax.eval_shape(
            lambda x, w, g: jax.vjp(lambda x, w: quantized.matmul(how, x, w), x, w)[1](g),
            x, weights, grad,
        )  # fmt: skip

    backward(INT8)
    with pytest.raises(ValueError, match=r"131072 terms.*131071.*microbatches.*'inputs'"):
        backward(CASES["int8 all"])


# ---- a model ----


def objective(config, params, rows):
    hidden_BTD = transformer.hidden(config, params, *rows)
    return tiny_model.mean_loss(config, params, hidden_BTD, rows[0])


def trained(how, **kwargs):
    """Loss and gradients of a small model."""
    config = tiny_model.config(quantization=how, **(LOOP | kwargs))
    compute = jax.jit(jax.value_and_grad(objective, argnums=1), static_argnums=0)
    return compute(config, tiny_model.params(config), tiny_model.rows(2, 24))


@pytest.fixture(scope="module")
def one_device():
    return trained(CASES["int8 all"])


def test_a_model_is_close_to_float32_and_every_parameter_learns(one_device):
    want, wants = trained(None)
    for (value, grads), most in ((one_device, 0.05), (trained(CASES["float8 all"]), 0.25)):
        assert 1e-6 < abs(value - want) < 0.01 * want
        for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wants), strict=True):
            assert 1e-4 < np.linalg.norm(one - other) / np.linalg.norm(other) < most


def program(how, **kwargs):
    config = tiny_model.config(quantization=how, **kwargs)
    shapes = transformer.abstract(config), tiny_model.rows(2, 24)
    return (
        jax.jit(jax.grad(objective, argnums=1), static_argnums=0).lower(config, *shapes).as_text()
    )


def dots(text):
    """Dtype of the operands of a program's products -> how many there are."""
    found = re.findall(
        r"stablehlo.dot_general.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text
    )
    return {pair: found.count(pair) for pair in found}


@pytest.fixture(scope="module")
def plain_dots():
    return dots(program(None, layers=1, compute_dtype="bfloat16"))


@pytest.mark.parametrize(
    "how, bits",
    [
        (CASES["int8 none"], 7),
        (CASES["int8 all"], 21),
        (architecture.Quantization(dtype="int8", parts=("attention",)), 8),
    ],
    ids=str,
)
def test_the_products_that_are_asked_for_are_in_int8(how, bits, plain_dots):
    """One layer has 4 products of attention's and 3 of the mlp's, each with two gradients."""
    found = dots(program(how, layers=1, compute_dtype="bfloat16"))
    assert set(plain_dots) == {("bf16", "bf16")}
    assert found == {("bf16", "bf16"): plain_dots["bf16", "bf16"] - bits, ("i8", "i8"): bits}


def test_experts_have_no_8_bit_products():
    experts = architecture.Experts(count=4, per_token=2, ffn_dim=16)
    with pytest.raises(
        ValueError, match=r"grouped products have no 8-bit kernel.*\('attention',\)"
    ):
        tiny_model.config(experts=experts, quantization=INT8)
    of_attention = architecture.Quantization(dtype="int8", parts=("attention",))
    found = dots(program(of_attention, layers=1, experts=experts, compute_dtype="bfloat16"))
    assert found["i8", "i8"] == 8


@pytest.mark.parametrize("parts", [(), ("mlp", "mlp")])
def test_parts_are_named_once(parts):
    message = r"of attention, mlp, each once; got .*quantization = None"
    with pytest.raises(ValueError, match=message):
        architecture.Quantization(dtype="int8", parts=parts)


# ---- two devices: this file as a script ----

MESHES = {"fsdp": {"fsdp": 2}, "context": {"context": 2}}


def on_mesh(axes):
    """Loss and gradients of a model on two devices."""
    config = tiny_model.config(quantization=CASES["int8 all"], **LOOP)
    mesh = sharding.make(sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | axes)))
    shapes = transformer.abstract(config)
    places = sharding.tree(mesh, transformer.logical_axes(config), shapes)
    params = jax.device_put(tiny_model.params(config), places)
    rows = context.arrange(tiny_model.rows(2, 24), mesh.shape)
    with jax.set_mesh(mesh):
        compute = jax.jit(jax.value_and_grad(objective, argnums=1), static_argnums=0)
        return jax.device_get(compute(config, params, jax.device_put(rows, sharding.batch(mesh))))


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    out = tmp_path_factory.mktemp("quantized") / "out.pickle"
    devices.run_script(__file__, out, count=2)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


@pytest.mark.parametrize("mesh", MESHES)
def test_two_devices_train_as_one(mesh, two_devices, one_device):
    """To the rounding of 8 bits: sums in another order move values across its edges."""
    (value, grads), (want, wants) = two_devices[mesh], one_device
    assert value == pytest.approx(float(want), rel=1e-3)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wants), strict=True):
        assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(other)


if __name__ == "__main__":
    made = {name: on_mesh(axes) for name, axes in MESHES.items()}
    pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(made))
