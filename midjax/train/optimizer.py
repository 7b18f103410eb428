# SPDX-License-Identifier: Apache-2.0
"""The Optax chain, with a name for each part so that a checkpoint can be mapped by name.

    clip -> adam (count, mu, nu) -> decay

What it gives is a direction: the step multiplies it by minus the learning rate. Adam's count is the
age of its moments (bias correction) and survives an anneal; the position on the learning rate curve
is `TrainState.schedule_count`, which an anneal resets.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW, Loshchilov and Hutter 1711.05101, with a global-norm clip before it.

    Attributes:
      b1, b2, eps: of Adam; eps is added outside the square root.
      weight_decay: decoupled, times the learning rate, on the matrices of the layers and the head.
      decay_embedding: whether the embedding table (and with it a tied head) decays.
      decay_norms: whether norms and biases decay, as MaxText has it.
      clip_norm: global norm above which gradients are scaled down; None for no clip.
      moments_dtype: of mu.
    """

    b1: float
    b2: float
    eps: float
    weight_decay: float
    decay_embedding: bool
    decay_norms: bool
    clip_norm: float | None
    moments_dtype: Literal["float32", "bfloat16"]

    def __post_init__(self) -> None:
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"AdamW.b1 and b2 must lie in [0, 1), got {self.b1}, {self.b2}.")
        if self.eps <= 0 or self.weight_decay < 0:
            raise ValueError(
                "AdamW.eps must be above 0 and weight_decay 0 or more, got "
                f"{self.eps}, {self.weight_decay}."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"AdamW.clip_norm must be above 0, or None for no clip; got {self.clip_norm}."
            )


def make(config: AdamW) -> optax.GradientTransformation:
    """The chain; its state is a dict with the keys `clip`, `adam`, `decay`."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.scale_by_adam(
        b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=jnp.dtype(config.moments_dtype)
    )
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: decay_mask(config, params)
    )
    return optax.named_chain(("clip", clip), ("adam", adam), ("decay", decay))


# Parameters that always decay, by name. Experts are stacks of such matrices.
_MATRICES = frozenset(
    ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down", "head",
     "router", "expert_gate", "expert_up", "expert_down")
)  # fmt: skip


def decay_mask(config: AdamW, params: Any) -> Any:
    """True where weight decay applies. Names decide, not ranks, as layers are stacked.

    Raises:
      ValueError: a parameter that no rule names.
    """

    def decays(path: Any, _: Any) -> bool:
        name = path[-1].key
        if name == "embed":
            return config.decay_embedding
        if name.endswith(("norm", "bias")):
            return config.decay_norms
        if name in _MATRICES:
            return True
        raise ValueError(
            f"No rule says whether the parameter {name!r} decays. Add it to optimizer._MATRICES, "
            "or call it ..._norm or ..._bias."
        )

    return jax.tree_util.tree_map_with_path(decays, params)


def to_parts(opt_state: Any) -> dict[str, Any]:
    """Optimizer state -> what a checkpoint keeps of it, by name: moments and their age."""
    adam = opt_state["adam"]
    return {"moments": {"mu": adam.mu, "nu": adam.nu}, "adam_count": adam.count}


def from_parts(opt_state: Any, parts: dict[str, Any]) -> Any:
    """`opt_state` with the parts that are given put in their places."""
    adam = opt_state["adam"]
    if "moments" in parts:
        adam = adam._replace(mu=parts["moments"]["mu"], nu=parts["moments"]["nu"])
    if "adam_count" in parts:
        adam = adam._replace(count=parts["adam_count"])
    return opt_state | {"adam": adam}
