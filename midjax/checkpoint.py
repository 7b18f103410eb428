# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: Orbax underneath, with proof that what comes back is what was saved.

    <run>/checkpoints/<step>/params       model parameters
                            /opt_state    moments mu and nu, Adam's count, the schedule's count
                            /guard        history that spikes are told by, where there is one
                            /ema          average of the parameters, where one is kept
                            /step         updates done
                            /data         position in the data
                            /manifest     model, learning rate, norms, digests, lineage, versions

The items are separate so that each can be kept or reset, and an export never reads moments. Orbax
has no content checksums (a flipped byte restores in silence), so the manifest holds a digest of
every array. Saving is asynchronous; a save that was killed leaves a folder that is never listed.

Orbax is imported where it is used: it takes a third of a second, for which no first update waits.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
from absl import flags

from midjax import files, storage, trees
from midjax.distributed import group

FORMAT = 4
READABLE = (3, 4)  # 3 names the parent alone; 2 has no mixtures; 1 no seal, no list of arrays
# Errors in reading that speak of the files, or, the last, of who runs this.
_IN_READING = (FileNotFoundError, ValueError, PermissionError)


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit."""


class StorageError(CheckpointError):
    """Checkpoints cannot be written or reached, whatever is in them; later they may be."""

    exit_code = 171


class DamagedError(CheckpointError):
    """The files of a checkpoint are not what was saved.

    Attributes:
      run_dir, step: which checkpoint.
    """

    def __init__(self, run_dir: str, step: int, what: str) -> None:
        super().__init__(f"{run_dir}, step {step}: {what}")
        self.run_dir, self.step = run_dir, step
        self.told = run_dir, step, what  # for other processes, which raise it too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """When to save and what to keep. The last step of a run is always saved and kept.

    Attributes:
      every_steps: updates between two saves.
      last: how many of the newest to keep.
      forever_every_steps: checkpoints at multiples of this are kept for good; None for none.
      at_phase_ends: saves where a phase of the schedule gives way to the next one, too, and keeps
        that for good: the state before a decay, and after it.
    """

    every_steps: int
    last: int
    forever_every_steps: int | None
    at_phase_ends: bool = False

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.last < 1 or (self.forever_every_steps or 1) < 1:
            raise ValueError(f"Keep: every number must be 1 or more, got {self}.")


class Store:
    """The checkpoints of one run directory. Use as a context: leaving waits for the last save.

    The directory is opened at the first need, or by `prepare`: no update waits for that, and a
    directory that cannot be reached any more, which `check_place` could, is told of then.

    Args:
      run_dir, keep: of the run.
      forever: steps that are kept for good, besides those that `keep` names.
    """

    def __init__(self, run_dir: str, keep: Keep, forever: Collection[int] = ()) -> None:
        self._run_dir, self._place = run_dir, folder(run_dir)
        self._keep, self._forever = keep, forever
        self._opened: Any = None

    def _manager(self) -> Any:
        """Orbax's, which is made once."""
        if self._opened is not None:
            return self._opened
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        policies: list[Any] = [
            checkpoint_managers.LatestN(self._keep.last),
            checkpoint_managers.CustomSteps(sorted(self._forever)),
        ]
        if self._keep.forever_every_steps:
            policies.append(checkpoint_managers.EveryNSteps(self._keep.forever_every_steps))
        _bound_waits()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)
        )
        with _reaching(self._place):
            self._opened = ocp.CheckpointManager(
                self._place, item_handlers=_handlers(), options=options
            )
        return self._opened

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.wait()
        if self._opened is not None:
            self._opened.close()

    def wait(self) -> None:
        """Until what was begun to be saved is whole.

        Raises:
          StorageError: it could not be written.
        """
        if self._opened is None:
            return
        with _reaching(self._place):
            self._opened.wait_until_finished()

    def newest_step(self) -> int | None:
        """The newest checkpoint, also one that is being written."""
        if self._opened is None:  # then none is
            return max(steps(self._run_dir), default=None)
        return self._opened.latest_step()

    def prepare(self, **items: Any) -> None:
        """Opens the directory, and compiles what `save` will sum over these items.

        So that no save has to wait for it.

        Raises:
          StorageError: the directory cannot be reached.
        """
        self._manager()
        trees.summary(_arrays(**items))

    def save(
        self,
        step: int,
        *,
        params: Any,
        opt_state: Mapping[str, Any] | None,
        data: Mapping[str, Any],
        facts: Mapping[str, Any],
        guard: Mapping[str, Any] | None = None,
        ema: Any = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts saving and returns; the arrays may be donated afterwards.

        Args:
          step: updates done; above every step saved before.
          params: parameter tree.
          opt_state: `optimizers.optimizer.to_parts` of the optimizer state; None saves none.
          data: position in the data, plain JSON; empty where there is none.
          facts: what the manifest says besides norms and digests, plain JSON.
          guard: arrays by name; None saves none.
          ema: average of the parameters, like `params`; None saves none.
          settle: waits, in the background, for what must be written before the checkpoint counts.

        Raises:
          StorageError: the save before could not be written.
        """
        manager = self._manager()
        latest = manager.latest_step()
        if latest is not None and step <= latest:
            raise CheckpointError(f"Cannot save step {step}: step {latest} is there already.")
        arrays = _arrays(params=params, opt_state=opt_state, guard=guard, ema=ema)
        known = dict(facts) | {"format": FORMAT, "arrays": trees.describe(arrays)}
        summed = trees.summary(arrays)

        def manifest() -> dict[str, Any]:
            found = known | summed()
            settle()
            return found | {"seal": _seal(step, data, found)}

        from orbax.checkpoint import args

        from midjax import late_json

        asked = args.Composite(
            **{name: args.PyTreeSave(tree) for name, tree in arrays.items()},
            step=args.JsonSave({"step": step}),
            data=args.JsonSave(dict(data)),
            manifest=late_json.Save(manifest),
        )
        with _reaching(self._place):
            saved = manager.save(step, args=asked, force=True)
        if not saved:  # Orbax refuses in silence
            raise CheckpointError(
                f"Orbax did not save step {step}; it holds {list(manager.all_steps())}."
            )


def _bound_waits() -> None:
    """Lets Orbax's processes wait for each other with a timeout, which names the missing one.

    Of itself it computes something on all devices together, and waits for ever.
    """
    if group.count() > 1:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Orbax reads one of its own
        flags.FLAGS["experimental_orbax_use_distributed_barrier"].value = True


def _handlers() -> dict[str, Any]:
    """Item -> what writes it. Floats hardly shrink, and compressing them took from the steps."""
    import orbax.checkpoint as ocp

    from midjax import late_json

    arrays = ("params", "opt_state", "guard", "ema")
    return {name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in arrays} | {
        "step": ocp.JsonCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "manifest": late_json.Handler(),
    }


def _arrays(**items: Any) -> dict[str, Any]:
    """The items that there are."""
    return {name: tree for name, tree in items.items() if tree is not None}


@contextlib.contextmanager
def _reaching(place: str, *others: type[Exception]) -> Iterator[None]:
    """Makes a `StorageError` of what the storage raises; `others` are left as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (CheckpointError, *others)) or not storage.is_of_storage(error):
            raise
        raise StorageError(f"{place}: {type(error).__name__}: {error}") from error


def check_place(run_dir: str) -> None:
    """See `storage.check`."""
    storage.check(run_dir)


def folder(run_dir: str) -> str:
    """Where a run's checkpoints lie, absolute as Orbax wants it."""
    place = files.path(run_dir) / "checkpoints"
    return str(place if files.is_remote(place) else place.resolve())


def steps(run_dir: str) -> list[int]:
    """Steps of the finished checkpoints of a run, oldest first; damaged ones included."""
    root = files.path(folder(run_dir))
    with _reaching(str(root), *_IN_READING):
        if not root.exists():
            return []
        import orbax.checkpoint as ocp

        return sorted(
            int(p.name)
            for p in root.iterdir()
            if p.name.isdigit() and p.is_dir() and ocp.utils.is_checkpoint_finalized(p)
        )


def read_facts(run_dir: str, step: int) -> dict[str, Any]:
    """The JSON items of one checkpoint: {"step": int, "data": {...}, "manifest": {...}}.

    Raises:
      DamagedError: missing or not JSON.
      StorageError: it cannot be reached.
      CheckpointError: written in another format.
    """
    facts: dict[str, Any] = {}
    for item in ("step", "data", "manifest"):
        file = files.path(folder(run_dir)) / str(step) / item / "metadata"
        try:
            with _reaching(str(file), *_IN_READING):
                facts[item] = files.read_json(file)
        except StorageError:
            raise
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
    if found not in READABLE:
        raise CheckpointError(
            f"{run_dir}, step {step}: checkpoint format {found}, this midjax reads "
            f"{' and '.join(map(str, READABLE))}."
        )
    if not sealed:
        raise DamagedError(run_dir, step, "step, data or manifest is not what was saved")
    return facts | {"step": number}


def _seal(step: Any, data: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Hash of the JSON items, as Orbax keeps no checksum of them either."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return files.sha256(json.dumps([step, data, rest], sort_keys=True).encode())


def restore(
    run_dir: str, step: int, targets: Mapping[str, Any], *, unused: Collection[str] = ()
) -> dict[str, Any]:
    """Reads items of one checkpoint onto devices and verifies every array's digest.

    Args:
      run_dir: run directory.
      step: which checkpoint.
      targets: item ("params", "opt_state", "guard", "ema") -> tree of `ShapeDtypeStruct` with
        shardings. An item that is not asked for is not read.
      unused: arrays of these items that are not to be read, as "opt_state/moments/nu/embed".

    Raises:
      DamagedError: unreadable, or its content is not what was saved.
      StorageError: files that cannot be reached.
      CheckpointError: another shape, dtype or set of arrays.
    """
    # Files may be damaged for one process only: the others are to hear of it, not to wait.
    saved, restored = group.together(
        f"reading {run_dir}, step {step}",
        _read,
        run_dir,
        step,
        targets,
        unused,
        known=(DamagedError,),
    )
    digest_of = saved["digests"]
    if changed := [
        k for k, digest in trees.digests(restored).items() if digest_of.get(k) != digest
    ]:
        raise DamagedError(
            run_dir,
            step,
            f"{len(changed)} arrays are not what was saved (digests differ), first {changed[0]}. "
            "The files are damaged; use an earlier step.",
        )
    return restored


def _read(
    run_dir: str, step: int, targets: Mapping[str, Any], unused: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(manifest, items); what this process's devices hold of them, unverified."""
    import orbax.checkpoint as ocp

    saved = read_facts(run_dir, step)["manifest"]
    wanted = {name: what for name, what in saved["arrays"].items() if name not in set(unused)}
    if wrong := trees.mismatches(wanted, targets):
        raise CheckpointError(f"{run_dir}, step {step}, does not fit: {trees.listed(wrong)}.")
    restored = {}
    try:
        for name, tree in targets.items():
            how = ocp.checkpoint_utils.construct_restore_args(tree)
            asked = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=True)
            place = files.path(folder(run_dir)) / str(step) / name
            with _reaching(str(place), *_IN_READING):
                restored[name] = ocp.PyTreeCheckpointHandler().restore(place, args=asked)
    except StorageError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, FileNotFoundError) as error:
        what = f"cannot be restored: {type(error).__name__}: {error}"
        if storage.is_passing(error):
            raise StorageError(f"{run_dir}, step {step}: {what}") from error
        raise DamagedError(run_dir, step, what) from error
    for name, leaf in trees.named_leaves(restored):
        if not isinstance(leaf, jax.Array):  # Orbax hands the target back, in silence
            raise DamagedError(run_dir, step, f"{name} is not in the files")
    return saved, restored


def set_aside(run_dir: str, step: int, why: str = "damaged") -> str:
    """Renames a checkpoint so that it no longer counts; returns the new name, `STEP.WHY-NUMBER`.

    Raises:
      StorageError: it could not be moved.
    """
    root = files.path(folder(run_dir))
    number = 0
    with _reaching(str(root)):
        while (target := root / f"{step}.{why}-{number}").exists():
            number += 1
        storage.move(root / str(step), target, why)
    return str(target)
