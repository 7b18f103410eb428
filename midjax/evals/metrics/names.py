# SPDX-License-Identifier: Apache-2.0
"""Which metrics there are, by kind of task, and whether more of them is better."""

import difflib

OF_KIND = {
    "choice": (
        "acc",
        "acc_norm",
        "acc_bytes",
        "acc_per_char",
        "acc_per_byte",
        "acc_per_token",
        "acc_uncond",
        "bits_per_byte",
        "correct_prob",
    ),
    "gold": ("bits_per_byte", "nats_per_token", "greedy"),
    "generate": (
        "exact_match",
        "squad_em",
        "squad_f1",
        "drop_em",
        "drop_f1",
        "rouge1",
        "rouge2",
        "rougeL",
        "math_equal",
        "step_plan",
        "step_action",
        "step_arguments",
        "step_offered",
    ),
    "code": ("pass",),
    "calls": ("match",),
    "agent": ("solved",),
    "group": (),
}
LESS_IS_BETTER = frozenset({"bits_per_byte", "nats_per_token"})


def check(name: str, kind: str) -> None:
    """
    Raises:
      ValueError: tasks of that kind have no such metric.
    """
    known = OF_KIND[kind]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"A task of kind {kind!r} has no metric {name!r}: there are {', '.join(known)}.{hint}"
        )
