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
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from midjax import files

FORMAT = 2  # 1 had no seal and no list of arrays


# Words in TensorStore's errors that speak of the way to the files, not of the files.
_PASSING = (
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)


class CheckpointError(ValueError):
    """A checkpoint is missing, cannot be reached or does not fit."""


class DamagedError(CheckpointError):
    """The files of a checkpoint are not what was saved.

    Attributes:
      run_dir, step: which checkpoint.
    """

    def __init__(self, run_dir: str, step: int, what: str) -> None:
        super().__init__(f"{run_dir}, step {step}: {what}")
        self.run_dir, self.step = run_dir, step


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
        opt_state: Mapping[str, Any] | None,
        data: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Starts saving and returns; the arrays may be donated afterwards.

        Args:
          step: updates done; above every step saved before.
          params: parameter tree.
          opt_state: `optimizer.to_parts` of the optimizer state; None saves none.
          data: position in the data, plain JSON; empty where there is none.
          facts: what the manifest says besides norms and digests, plain JSON.
        """
        latest = self._manager.latest_step()
        if latest is not None and step <= latest:
            raise CheckpointError(f"Cannot save step {step}: step {latest} is there already.")
        arrays = {"params": params}
        if opt_state is not None:
            arrays["opt_state"] = dict(opt_state)
        manifest = dict(facts) | {
            "format": FORMAT,
            "arrays": describe(arrays),
            "norms": norms(arrays),
            "digests": digests(arrays),
        }
        manifest["seal"] = _seal(step, data, manifest)
        args = ocp.args
        saved = self._manager.save(
            step,
            args=args.Composite(
                **{name: args.StandardSave(tree) for name, tree in arrays.items()},
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
    return sorted(
        int(p.name)
        for p in root.iterdir()
        if p.name.isdigit() and p.is_dir() and ocp.utils.is_checkpoint_finalized(p)
    )


def read_facts(run_dir: str, step: int) -> dict[str, Any]:
    """The JSON items of one checkpoint: {"step": int, "data": {...}, "manifest": {...}}.

    Raises:
      DamagedError: missing or not JSON.
      CheckpointError: written in another format.
    """
    facts: dict[str, Any] = {}
    for item in ("step", "data", "manifest"):
        file = files.path(folder(run_dir)) / str(step) / item / "metadata"
        try:
            facts[item] = files.read_json(file)
        except (FileNotFoundError, ValueError) as error:
            raise DamagedError(run_dir, step, f"cannot read {item}: {error}") from error
        if not isinstance(facts[item], dict):
            raise DamagedError(run_dir, step, f"{item} is not a JSON object")
    manifest = facts["manifest"]
    number = facts["step"].get("step")
    sealed = manifest.get("seal") == _seal(number, facts["data"], manifest)
    found = manifest.get("format")
    if not isinstance(found, int) or ("seal" in manifest and not sealed):
        raise DamagedError(run_dir, step, "step, data or manifest is not what was saved")
    if found != FORMAT:
        raise CheckpointError(
            f"{run_dir}, step {step}: checkpoint format {found}, this midjax reads {FORMAT}."
        )
    if not sealed:
        raise DamagedError(run_dir, step, "step, data or manifest is not what was saved")
    return facts | {"step": number}


def _seal(step: Any, data: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Hash of the JSON items, as Orbax keeps no checksum of them either."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return files.sha256(json.dumps([step, data, rest], sort_keys=True).encode())


def lineage(run_dir: str, step: int) -> list[dict[str, Any]]:
    """Where a checkpoint comes from, oldest first: run, step and tokens drawn per source.

    Ends early, with the name alone, at a parent whose checkpoint is gone or cannot be read.
    """
    found: list[dict[str, Any]] = []
    place: tuple[str, int] | None = (run_dir, step)
    while place:
        run, at = place
        found.insert(0, {"run": run, "step": at})
        place = None
        if at not in steps(run):
            break
        try:
            facts = read_facts(run, at)
        except CheckpointError:
            if (run, at) == (run_dir, step):
                raise
            break
        data, parent = facts["data"], facts["manifest"]["parent"]
        if data:
            found[0]["tokens by source"] = {
                name: (rows - data["begun_rows"].get(name, 0)) * data["row_tokens"]
                for name, rows in data["drawn_rows"].items()
            }
        if parent.get("imported"):
            found.insert(0, {"imported from": parent["imported"]})
        elif parent["huggingface"]:
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
      DamagedError: unreadable, or its content is not what was saved.
      CheckpointError: another shape, dtype or set of arrays; files that cannot be reached.
    """
    saved = read_facts(run_dir, step)["manifest"]
    if wrong := mismatches(saved["arrays"], targets):
        raise CheckpointError(f"{run_dir}, step {step}, does not fit: {listed(wrong)}.")
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
        except (ValueError, KeyError, AttributeError, TypeError, FileNotFoundError) as error:
            what = f"cannot be restored: {type(error).__name__}: {error}"
            if any(word in str(error) for word in _PASSING):
                raise CheckpointError(f"{run_dir}, step {step}: {what}") from error
            raise DamagedError(run_dir, step, what) from error
    restored = {name: found[name] for name in targets}
    digest_of = saved["digests"]
    if changed := [k for k, digest in digests(restored).items() if digest_of.get(k) != digest]:
        raise DamagedError(
            run_dir,
            step,
            f"{len(changed)} arrays are not what was saved (digests differ), first {changed[0]}. "
            "The files are damaged; use an earlier step.",
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


def describe(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape of every array, such as "float32[2, 32, 16]"."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(tree)}


def mismatches(saved: Mapping[str, str], targets: Mapping[str, Any]) -> list[str]:
    """What differs between arrays as a manifest describes them and those that are wanted.

    Args:
      saved: "arrays" of a manifest.
      targets: item -> tree of arrays or their shapes; items that are not named are not compared.
    """
    theirs = {name: what for name, what in saved.items() if name.split("/", 1)[0] in targets}
    ours = describe(dict(targets))
    return [
        f"{name}: checkpoint {theirs.get(name, 'absent')}, recipe {ours.get(name, 'absent')}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def listed(wrong: list[str]) -> str:
    """The first of many findings, for a message."""
    rest = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return "; ".join(wrong[:4]) + rest


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


def unordered_digest(x: jax.Array) -> jax.Array:
    """32-bit digest of an array's numbers in any order and shape: a rearrangement keeps it."""
    bits = jax.lax.bitcast_convert_type(x, _UINT[x.dtype.itemsize]).astype(jnp.uint32)
    return jnp.sum(_mix(bits + np.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


_UINT = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
