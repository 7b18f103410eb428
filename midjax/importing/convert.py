# SPDX-License-Identifier: Apache-2.0
"""A foreign checkpoint -> a run directory: arrays one at a time onto the mesh, then saved.

Foreign --fit.check--> each array: read, change, place --digests agree--> Store.save
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from midjax import checkpoint, files, lineage, log, trees, units
from midjax.importing import fit
from midjax.importing import foreign as foreign_lib
from midjax.model import hf_generation, sharding, transformer


def write(foreign: foreign_lib.Foreign, *, output: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Writes `output/checkpoints/<step>`, `import.json`, `tokenizer/` and `source/`.

    Args:
      foreign: the checkpoint.
      output: a run directory without checkpoints.
      mesh: where the arrays lie on their way; any mesh can read them afterwards.

    Returns:
      What `import.json` says: where everything came from, what was left out, and the norms.

    Raises:
      ForeignError: it does not fit, or `output` is taken.
    """
    if taken := checkpoint.steps(output):
        raise foreign_lib.ForeignError(
            f"{output} holds the checkpoints {taken} already. Name another folder, or delete it."
        )
    left_out = fit.check(foreign)
    with jax.set_mesh(mesh):
        arrays = {kind: _moved(foreign, kind, mesh) for kind in foreign_lib.kinds(foreign)}
        opt_state: dict[str, Any] | None = None
        if foreign.moment is not None:
            replicated = jax.sharding.NamedSharding(mesh, sharding.spec(()))
            # The keys are those of `train.optimizers.optimizer.to_parts`.
            opt_state = {"moments": {kind: arrays[kind] for kind in ("mu", "nu")}}
            for name in ("adam_count", "schedule_count"):
                opt_state[name] = jax.device_put(np.int32(getattr(foreign, name)), replicated)
        tokenizer_hash = _write_tokenizer(foreign, output)
        if foreign.said is not None:
            hf_generation.keep(foreign.said, output)
        keep = checkpoint.Keep(every_steps=1, last=1, forever_every_steps=None)
        with checkpoint.Store(output, keep) as store:
            facts = _facts(foreign, tokenizer_hash, output)
            store.save(foreign.step, params=arrays[None], opt_state=opt_state, data={}, facts=facts)
    record = {
        "from": dict(foreign.origin),
        "step": foreign.step,
        "adam_count": foreign.adam_count,
        "norms": checkpoint.read_facts(output, foreign.step)["manifest"]["norms"],
        "made of": {name: list(take.theirs) for name, take in sorted(foreign.params.items())},
        "left out": left_out,
    }
    files.write_json(files.path(output) / "import.json", record)
    _announce(foreign, record, output)
    return record


def _facts(foreign: foreign_lib.Foreign, tokenizer_hash: str | None, output: str) -> dict[str, Any]:
    """What the manifest says besides norms and digests; the keys are those of a run's own."""
    lr = foreign.lr
    own = lineage.stage(output, foreign.step, data={}, facts={}, recipe=None)
    return {
        "step": foreign.step,
        "adam_count": foreign.adam_count,
        "schedule_count": foreign.schedule_count,
        "lr": {"last": lr and lr.last, "next": lr and lr.next},
        "peak_lr": lr and lr.peak,
        "model": dataclasses.asdict(foreign.model),
        "tokenizer_hash": tokenizer_hash,
        "lineage": lineage.extended([{"imported from": dict(foreign.origin)}], own),
        "versions": {"jax": jax.__version__},
    }


def _write_tokenizer(foreign: foreign_lib.Foreign, output: str) -> str | None:
    """Writes the files; returns the hash that token folders are compared with."""
    if foreign.tokenizer is None:
        return None
    for name, content in foreign.tokenizer.items():
        files.write_bytes(files.path(output) / "tokenizer" / name, content)
    return files.sha256(foreign.tokenizer["tokenizer.json"])


def _announce(foreign: foreign_lib.Foreign, record: Mapping[str, Any], output: str) -> None:
    count = transformer.parameter_count(foreign.model)
    log.say(f"{foreign.place}: {units.human(count)} parameters, step {foreign.step}")
    if foreign.lr is None:
        log.say("  no optimizer state: runs can start from it with Start.kind = 'weights' only")
    else:
        log.say(
            f"  Adam's moments after {foreign.adam_count} updates; the next learning rate is "
            f"{foreign.lr.next:.6g}"
        )
    log.say("  norms: " + ", ".join(f"{k} {norm:.6g}" for k, norm in record["norms"].items()))
    reasons: dict[str, list[str]] = {}
    for name, why in record["left out"].items():
        if not why.startswith(foreign_lib.READ):
            reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        some = names[0] if len(names) == 1 else f"{len(names)} arrays such as {names[0]}"
        log.say(f"  not taken over: {some}: {why}")
    if foreign.tokenizer is None:
        log.say("  no tokenizer: whether data was tokenized with the right one cannot be checked")
    log.say(f"written to {output}; import.json says what was made of what")


# ---- moving ----


def _moved(
    foreign: foreign_lib.Foreign, kind: foreign_lib.Moment | None, mesh: jax.sharding.Mesh
) -> transformer.Params:
    """The parameters, or one moment of them, with the shardings of the table."""
    model = foreign.model
    shardings = sharding.tree(mesh, transformer.logical_axes(model), transformer.abstract(model))
    shapes = fit.shapes(foreign, kind)
    targets = {
        name: jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=place)
        for name, place in trees.named_leaves(shardings)
    }
    if foreign.load is not None:
        return foreign.load(_nested(targets))
    return _nested(_each(foreign, kind, targets))


def _each(
    foreign: foreign_lib.Foreign, kind: foreign_lib.Moment | None, targets: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Makes array after array, and proves that all numbers arrived."""
    assert foreign.read is not None
    moved: dict[str, jax.Array] = {}
    there: dict[str, int] = {}
    here = 0
    for name, target in targets.items():
        take = foreign.params[name]
        theirs = foreign.names(take, kind)
        mesh = target.sharding.mesh
        read = foreign.read({x: spread(foreign.arrays[x].shape, mesh) for x in theirs})
        for x in theirs:
            there[x] = int(trees.unordered_digest(read[x].astype(target.dtype)))
        make = _maker(take.change, 0.0 if kind else take.offset, target)
        moved[name], digest = make(*[read[x] for x in theirs])
        here += int(digest)
    if (sum(there.values()) - here) % (1 << 32):
        raise foreign_lib.ForeignError(
            f"{foreign.place}: the numbers of its {kind or 'parameters'} are not those that were "
            "made of them. A Take.change may only rearrange. Nothing was written."
        )
    return moved


def _maker(
    change: Callable[..., jax.Array], offset: float, target: Any
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(theirs...) -> (ours on its devices, the digest of its numbers before the offset)."""
    replicated = jax.sharding.NamedSharding(target.sharding.mesh, sharding.spec(()))

    def make(*theirs: jax.Array) -> tuple[jax.Array, jax.Array]:
        array = change(*theirs).astype(target.dtype)
        return array + offset if offset else array, trees.unordered_digest(array)

    return jax.jit(make, out_shardings=(target.sharding, replicated))


def spread(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """An array whose axes mean nothing yet, evenly over all devices where its largest divides."""
    places = [i for i, size in enumerate(shape) if size % mesh.size == 0]
    axes: list[Any] = [None] * len(shape)
    if places:
        axes[max(places, key=lambda i: shape[i])] = mesh.axis_names
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"layers/wq": x} -> {"layers": {"wq": x}}."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *above, last = name.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree
