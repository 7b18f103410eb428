# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: Orbax underneath, with proof that what comes back is what was saved.

    <run>/checkpoints/<step>/params       model parameters
                            /opt_state    moments mu and nu, Adam's count, the schedule's count
                            /step         updates done
                            /data         position in the data
                            /manifest     model, learning rate, norms, digests, lineage, versions

The items are separate so that each can be kept or reset, and an export never reads moments. Orbax
has no content checksums (a flipped byte restores in silence), so the manifest holds a digest of
every array. Saving is asynchronous; a save that was killed leaves a folder that is never listed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from midjax import files

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """When to save and what to keep. The last step of a run is always saved and kept.

    Attributes:
      every_steps: updates between two saves.
      last: how many of the newest to keep.
      forever_every_steps: checkpoints at multiples of this are kept for good; None for none.
    """

    every_steps: int
    last: int
    forever_every_steps: int | None

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.last < 1 or (self.forever_every_steps or 1) < 1:
            raise ValueError(f"Keep: every number must be 1 or more, got {self}.")


class Store:
    """The checkpoints of one run directory. Use as a context: leaving waits for the last save."""

    def __init__(self, run_dir: str, keep: Keep) -> None:
        policies: list[Any] = [checkpoint_managers.LatestN(keep.last)]
        if keep.forever_every_steps:
            policies.append(checkpoint_managers.EveryNSteps(keep.forever_every_steps))
        self._manager = ocp.CheckpointManager(
            folder(run_dir),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)
            ),
        )

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(
        self,
        step: int,
        *,
        params: Any,
        opt_state: Mapping[str, Any],
        data: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Starts saving and returns; the arrays may be donated afterwards.

        Args:
          step: updates done; above every step saved before.
          params: parameter tree.
          opt_state: `optimizer.to_parts` of the optimizer state.
          data: position in the data, plain JSON.
          facts: what the manifest says besides norms and digests, plain JSON.
        """
        latest = self._manager.latest_step()
        if latest is not None and step <= latest:
            raise CheckpointError(f"Cannot save step {step}: step {latest} is there already.")
        arrays = {"params": params, "opt_state": dict(opt_state)}
        manifest = dict(facts) | {
            "format": FORMAT,
            "shapes": shapes(params),
            "norms": norms(arrays),
            "digests": digests(arrays),
        }
        args = ocp.args
        saved = self._manager.save(
            step,
            args=args.Composite(
                params=args.StandardSave(arrays["params"]),
                opt_state=args.StandardSave(arrays["opt_state"]),
                step=args.JsonSave({"step": step}),
                data=args.JsonSave(dict(data)),
                manifest=args.JsonSave(manifest),
            ),
            force=True,
        )
        if not saved:  # Orbax refuses in silence
            raise CheckpointError(
                f"Orbax did not save step {step}; it holds {list(self._manager.all_steps())}."
            )


def folder(run_dir: str) -> str:
    """Where a run's checkpoints lie, absolute as Orbax wants it."""
    return str((files.path(run_dir) / "checkpoints").resolve())


def steps(run_dir: str) -> list[int]:
    """Steps of the finished checkpoints of a run, oldest first; damaged ones included."""
    root = files.path(folder(run_dir))
    if not root.exists():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and p.is_dir())


def read_facts(run_dir: str, step: int) -> dict[str, Any]:
    """The JSON items of one checkpoint: {"step": int, "data": {...}, "manifest": {...}}.

    Raises:
      CheckpointError: unreadable, or written by a newer midjax.
    """
    facts: dict[str, Any] = {}
    for item in ("step", "data", "manifest"):
        file = files.path(folder(run_dir)) / str(step) / item / "metadata"
        try:
            facts[item] = files.read_json(file)
        except (FileNotFoundError, ValueError) as error:
            raise CheckpointError(f"{run_dir}, step {step}: cannot read {item}: {error}") from error
    if facts["manifest"].get("format") != FORMAT:
        raise CheckpointError(
            f"{run_dir}, step {step}: checkpoint format {facts['manifest'].get('format')}, "
            f"this midjax reads {FORMAT}."
        )
    return facts | {"step": int(facts["step"]["step"])}


def lineage(run_dir: str, step: int) -> list[dict[str, Any]]:
    """Where a checkpoint comes from, oldest first: run, step and tokens drawn per source.

    Ends early, with the name alone, at a parent whose checkpoint is gone.
    """
    found: list[dict[str, Any]] = []
    place: tuple[str, int] | None = (run_dir, step)
    while place:
        run, at = place
        found.insert(0, {"run": run, "step": at})
        place = None
        if at not in steps(run):
            break
        facts = read_facts(run, at)
        data, parent = facts["data"], facts["manifest"]["parent"]
        tokens = {name: rows * data["row_tokens"] for name, rows in data["drawn_rows"].items()}
        found[0]["tokens by source"] = tokens
        if parent["huggingface"]:
            found.insert(0, {"Hugging Face folder": parent["huggingface"]})
        elif parent["run"]:
            place = (parent["run"], parent["step"])
    return found


def restore(run_dir: str, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Reads items of one checkpoint onto devices and verifies every array's digest.

    Args:
      run_dir: run directory.
      step: which checkpoint.
      targets: item ("params", "opt_state") -> tree of `ShapeDtypeStruct` with shardings. An item
        that is not asked for is not read.

    Raises:
      CheckpointError: unreadable, of another shape, or its content is not what was saved.
    """
    facts = read_facts(run_dir, step)
    args = ocp.args
    with ocp.CheckpointManager(
        folder(run_dir),
        item_names=tuple(targets),
        options=ocp.CheckpointManagerOptions(create=False),
    ) as manager:
        try:
            found = manager.restore(
                step,
                args=args.Composite(
                    **{name: args.StandardRestore(tree) for name, tree in targets.items()}
                ),
            )
        except Exception as error:  # Orbax raises many kinds for a damaged or foreign folder
            raise CheckpointError(
                f"{run_dir}, step {step}: cannot be restored: {type(error).__name__}: {error}"
            ) from error
    restored = {name: found[name] for name in targets}
    saved = facts["manifest"]["digests"]
    wrong = [k for k, digest in digests(restored).items() if saved.get(k) != digest]
    if wrong:
        raise CheckpointError(
            f"{run_dir}, step {step}: {len(wrong)} arrays are not what was saved (digests differ), "
            f"first {wrong[0]}. The files are damaged; use an earlier step."
        )
    return restored


def set_aside(run_dir: str, step: int) -> str:
    """Renames a damaged checkpoint so that it no longer counts; returns the new name."""
    root = files.path(folder(run_dir))
    number = 0
    while (target := root / f"{step}.damaged-{number}").exists():
        number += 1
    (root / str(step)).rename(target)
    return str(target)


def shapes(params: Any) -> dict[str, list[int]]:
    """Path -> shape of every parameter, for comparing models by name."""
    return {name: list(leaf.shape) for name, leaf in named_leaves(params)}


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """("layers/wq", array) for every leaf of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def norms(arrays: Mapping[str, Any]) -> dict[str, float]:
    """L2 norms of params, mu and nu: the summary that a restore is checked against."""
    trees = {}
    if "params" in arrays:
        trees["params"] = arrays["params"]
    if "opt_state" in arrays:
        trees |= arrays["opt_state"]["moments"]
    found = jax.device_get(_norms(trees))
    return {name: float(norm) for name, norm in found.items()}


@jax.jit
def _norms(trees: dict[str, Any]) -> dict[str, jax.Array]:
    return {
        name: optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
        for name, tree in trees.items()
    }


def digests(tree: Any) -> dict[str, str]:
    """Path -> 32-bit digest of each array's bits, the same on every mesh."""
    named = named_leaves(tree)
    found = jax.device_get(_digests([leaf for _, leaf in named]))
    return {name: f"{int(d):08x}" for (name, _), d in zip(named, found, strict=True)}


@jax.jit
def _digests(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_digest(leaf) for leaf in leaves]


def _digest(x: jax.Array) -> jax.Array:
    """Sum over places of mix(bits + hash of the place), modulo 2^32.

    Integer sums do not depend on their order, so sharding does not change the digest. The mixing
    (the finalizer of MurmurHash3) keeps changes from cancelling, as two flipped signs would in a
    plain weighted sum.
    """
    bits = jax.lax.bitcast_convert_type(x, _UINT[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = _mix(place + index + np.uint32(0x9E3779B9))
    return jnp.sum(_mix(bits + place), dtype=jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


_UINT = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
