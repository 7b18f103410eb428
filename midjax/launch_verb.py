# SPDX-License-Identifier: Apache-2.0
"""The verb `launch`: its arguments, and what is known of a run before a slice is paid for."""

import argparse
from typing import Any


def run(arguments: list[str]) -> None:
    """Does, or prints, what was asked for.

    Raises:
      ValueError: a wrong argument; a launch whose run could not train.
    """
    from midjax import config, log
    from midjax.launch import run as run_lib
    from midjax.launch import runner

    parser = argparse.ArgumentParser(prog="midjax launch", exit_on_error=False, add_help=False)
    parser.add_argument("action", nargs="?", default="create")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--worker", default="0-0")
    gin_files, bindings, rest = config.split_argv(arguments)
    options, unknown = parser.parse_known_args(rest)
    if unknown or options.action not in run_lib.ACTIONS:
        raise ValueError(
            f"unknown arguments {unknown or [options.action]}; launch takes --gin_file=FILE, "
            f"--gin.Launch.field=VALUE, one of {', '.join(run_lib.ACTIONS)}, --dry-run and "
            "--worker=SLICE-WORKER (logs)"
        )
    root = config.load("launch", gin_files, bindings)
    local = runner.Local()
    reads: list[str] = []
    if options.action == "create" and (recipe := read(root)) is not None:
        check_flags(root, recipe)
        check_mesh(root, recipe)
        reads = read_places(root, recipe)
    session = run_lib.Session(root, local, reads=reads)
    missing = [program for program in run_lib.programs(root) if not local.has(program)]
    if options.dry_run or missing:
        if missing and not options.dry_run:
            log.say(f"# nothing is run: {', '.join(missing)} is not installed")
        print(session.print_commands(options.action))
    elif options.action == "logs":
        session.logs(options.worker)
    else:
        getattr(session, options.action)()


def read(root: Any) -> Any:
    """The recipe of `train`, read here and now, not first by 64 machines; None if it is not here.

    Raises:
      ConfigError: as `train` would refuse it; or it is not where the machines would have it.
    """
    from midjax import config, files, log

    place = files.path(root.code) / root.recipe
    if not place.is_file():
        if root.image is None:
            raise config.ConfigError(f"Launch.recipe: there is no {place}.")
        log.say(f"# not checked: {root.recipe} is not here; {root.image} must have it")
        return None
    _, bindings, _ = config.split_argv(root.arguments[1:])
    # The run's own folder is the machines' concern; whether the rest holds is known here.
    return config.load("train", [str(place)], [x for x in bindings if "run_dir=" not in x])


def check_flags(root: Any, recipe: Any) -> None:
    """The compiler's flags are those of the model: `watch` starts it again without its recipe.

    Raises:
      LaunchError: `Launch.mixture_of_experts` says something else than the recipe.
    """
    from midjax.launch import spec

    has_experts = recipe.model.experts is not None
    if root.mixture_of_experts != has_experts:
        raise spec.LaunchError(
            f"Launch.mixture_of_experts is {root.mixture_of_experts}, and the model of "
            f"{root.recipe} has {'experts' if has_experts else 'none'}: such a model has flags of "
            f"its own. Set Launch.mixture_of_experts = {has_experts}."
        )


def check_mesh(root: Any, recipe: Any) -> None:
    """Compares a recipe of `train` with the chips that are asked for; no device is touched.

    Raises:
      LaunchError: its mesh is not of so many chips; its batch, rows or parameters do not divide.
    """
    import jax

    from midjax.launch import spec
    from midjax.model import context, sharding, transformer

    jax.config.update("jax_platforms", "cpu")  # shapes are all that is made here
    tpu = root.tpu
    try:
        sizes = sharding.sizes(recipe.mesh, tpu.chips)
        mesh = dict(zip(sharding.MESH_AXES, sizes, strict=True))
        if mesh["data"] % tpu.slices:
            raise ValueError(
                f"Mesh.data is {mesh['data']}, and there are {tpu.slices} slices: each must hold "
                f"whole copies of the model. Set Mesh.data to a multiple of {tpu.slices}."
            )
        for rows in recipe.data.batch_sizes:
            part = (rows // recipe.parts(rows),)
            sharding.check_divides("A microbatch", part, ("batch",), mesh)
        context.order(recipe.data.row_tokens, context.shards(mesh))

        def one(path: Any, array: Any, axes: Any) -> None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            sharding.check_divides(name, array.shape, axes, mesh)

        jax.tree_util.tree_map_with_path(
            one, transformer.abstract(recipe.model), transformer.logical_axes(recipe.model)
        )
    except ValueError as error:
        raise spec.LaunchError(
            f"{root.recipe} does not fit Launch.slice = {root.slice!r}, {tpu.chips} chips: {error} "
            "Launch.overrides changes the recipe for this launch."
        ) from None


def read_places(root: Any, recipe: Any) -> list[str]:
    """What the machines would read: token folders and the run to start from, all in a bucket.

    Raises:
      LaunchError: one is a folder of this machine, and no image could have it.
    """
    from midjax import log
    from midjax.launch import spec

    sources = recipe.data.sources.items()
    named = [(f"{name}/Source.tokens", source.tokens) for name, source in sources]
    for one in recipe.evaluations:
        named += [("Evaluation.tokens", one.tokens), ("Evaluation.parent", one.parent)]
        named += [("Tasks.data", one.tasks.data)] if one.tasks else []
        if not one.tokenizer.startswith("package:"):
            named.append(("Evaluation.tokenizer", one.tokenizer))
    named += [("Start.run", recipe.start.run), ("Start.huggingface", recipe.start.huggingface)]
    found = {name: place for name, place in named if place is not None}
    local = {name: place for name, place in found.items() if not place.startswith("gs://")}
    if local and root.image is None:
        listed = "\n  ".join(f"{name} = {place!r}" for name, place in local.items())
        raise spec.LaunchError(
            f"{root.recipe} reads from folders that no machine of {root.slice} has:\n  {listed}\n"
            "Copy them to a bucket (gcloud storage cp --recursive) and name that in "
            f'Launch.overrides, such as "{next(iter(local))}={{bucket}}/FOLDER". Weights of '
            "Hugging Face: midjax import first, and Start.run names what it wrote."
        )
    for name, place in local.items():
        log.say(f"# not checked: {name} = {place!r} must be in {root.image}")
    return sorted({place for place in found.values() if place.startswith("gs://")})
