# SPDX-License-Identifier: Apache-2.0
"""A function's gradient in which sums over a few large arrays are additions.

The TPU's compiler makes `x.sum(axis)` over two or four partial gradients [B, P, N, T, H] a
reduction of its own, which by its estimate takes five times as long as additions (v5p: 2.4 ms
instead of 0.4 for 0.5 GB). The splash kernel's fused backward pass ends in such a sum, inside of
the library: so the sum is replaced in its jaxpr.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

# Sums of more terms are left to the compiler: an addition each would be a long program.
_MOST_TERMS = 64
# And those of small arrays, which take no time: elements of a term.
_LEAST_ELEMENTS = 1 << 16


def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(constant, *arrays)` with a gradient in which long sums are additions.

    Args:
      function: of a pytree without gradients, and of arrays with them.
    """

    @jax.custom_vjp
    def called(constant: Any, arrays: tuple[jax.Array, ...]) -> Any:
        return function(constant, *arrays)

    def forward(constant: Any, arrays: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        return jax.vjp(functools.partial(function, constant), *arrays)

    def backward(pullback: Any, cotangent: Any) -> tuple[None, tuple[jax.Array, ...]]:
        closed, shape = jax.make_jaxpr(pullback, return_shape=True)(cotangent)
        flat = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(cotangent))
        return None, jax.tree.unflatten(jax.tree.structure(shape), flat)

    called.defvjp(forward, backward)
    return lambda constant, *arrays: called(constant, arrays)


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """A jaxpr's results, operation by operation."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= zip(jaxpr.invars, arguments, strict=True)
    makers = {equation.outvars[0]: equation for equation in jaxpr.eqns if equation.outvars}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        if _is_long(equation):
            known[equation.outvars[0]] = _sum(equation, makers, read)
            continue
        # The names that profiles, and plans of a step, know a kernel by.
        with jax.named_scope(str(equation.source_info.name_stack)):
            found = _operation(equation, given)
        known |= zip(equation.outvars, found, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _operation(equation: Any, given: Sequence[Any]) -> Sequence[Any]:
    primitive, parameters = equation.primitive, equation.params
    if primitive.name in ("jit", "pjit"):
        inner = parameters["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, given)
    found = primitive.bind(*given, **primitive.get_bind_params(parameters))
    return found if primitive.multiple_results else [found]


def _is_long(equation: Any) -> bool:
    """Whether it is a sum of a few large arrays."""
    if equation.primitive.name != "reduce_sum" or len(equation.params["axes"]) != 1:
        return False
    x = equation.invars[0].aval
    terms = x.shape[int(equation.params["axes"][0])]
    return 0 < terms <= _MOST_TERMS and x.size // terms >= _LEAST_ELEMENTS


def _sum(equation: Any, makers: Mapping[Any, Any], read: Callable[[Any], Any]) -> jax.Array:
    """The sum, term by term; what is only wider than it was is made so term by term, too."""
    (atom,), axis = equation.invars, int(equation.params["axes"][0])
    dtype, maker = atom.aval.dtype, None
    if not isinstance(atom, core.Literal):
        maker = makers.get(atom)
    if maker is not None and maker.primitive.name == "convert_element_type":
        (atom,) = maker.invars
    x = read(atom)
    terms = (jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis]))
    # Before anything else is done with it: fused further, the terms would be copied to another
    # layout, all of them.
    return jax.lax.optimization_barrier(
        functools.reduce(operator.add, (term.astype(dtype) for term in terms))
    )
