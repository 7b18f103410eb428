# SPDX-License-Identifier: Apache-2.0
"""What the backward pass makes again: policies by name.

A layer names its values (`checkpoint_name`): layer_input; query, key, value (rotated); attention,
before the output projection; gate and up of the mlp. Everything that a policy neither saves nor
offloads is made again from what it keeps: of save_projections that is the output projection, which
takes no longer than to write its result away and read it back.

    none                everything is saved
    dots                products with weights; those in 8 bits are made again
    full                the layers' inputs only
    save_attention      + attention, whose remaking costs a whole attention
    save_projections    + query, key, value, attention, gate, up
    offload_inputs      as full, with the layers' inputs in host memory
    offload_attention   as save_attention, with both in host memory
    offload_projections as save_projections, with all of them in host memory
    offload_all_but_mlp as save_projections, with all but gate and up in host memory: half the
                        traffic, which a chip's link to its host may carry beside the step

What is offloaded travels to pinned host memory in the forward pass and back in the backward pass.
Experts have no names: with them, gate and up are made again by every policy but "none", and on an
`expert` mesh axis by that too (see `moe`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

Remat = Literal[
    "none",
    "dots",
    "full",
    "save_attention",
    "save_projections",
    "offload_inputs",
    "offload_attention",
    "offload_projections",
    "offload_all_but_mlp",
]

_ATTENTION, _MLP = ("query", "key", "value", "attention"), ("gate", "up")
_PROJECTIONS = (*_ATTENTION, *_MLP)
# Policy -> (names that stay on the device, names that go to the host).
_NAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "save_attention": (("attention",), ()),
    "save_projections": (_PROJECTIONS, ()),
    "offload_inputs": ((), ("layer_input",)),
    "offload_attention": ((), ("layer_input", "attention")),
    "offload_projections": ((), ("layer_input", *_PROJECTIONS)),
    "offload_all_but_mlp": (_MLP, ("layer_input", *_ATTENTION)),
}


def wrap(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """A layer whose backward pass follows the policy."""
    policies = jax.checkpoint_policies
    if remat == "none":
        return layer
    if remat == "full":
        policy = policies.nothing_saveable
    elif remat == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    else:
        saved, offloaded = _NAMES[remat]
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(saved),
            names_which_can_be_offloaded=list(offloaded),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)
