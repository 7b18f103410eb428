# SPDX-License-Identifier: Apache-2.0
"""The verb `show`: what a verb would use, read or do. It runs nothing. Heavy imports inside."""

from midjax import training, verbs


def show(arguments: list[str]) -> None:
    from midjax import config

    if arguments[:1] == ["mixture"]:
        _show_mixture(arguments[1:])
        return
    if arguments[:1] == ["schedule"]:
        _show_schedule(arguments[1:])
        return
    if arguments[:1] == ["lineage"]:
        _show_lineage(arguments[1:])
        return
    if not arguments or arguments[0] not in config.ROOTS:
        known = ", ".join([*config.ROOTS, "mixture", "schedule", "lineage"])
        raise ValueError(f"show needs one of {known}, and its --gin_file=RECIPE")
    print(config.show(verbs.load(arguments[0], arguments[1:])))


def _show_mixture(arguments: list[str]) -> None:
    root = verbs.load("train", arguments)
    training.guard(root)
    from midjax.mixture import plan
    from midjax.train import prepare

    mixed = prepare.mix(root)
    for sentence in root.data.mixture.unnormalised():
        print(sentence)
    if mixed.position.changed:
        print(f"changed: a new stage of {root.run_dir} from step {mixed.first_step + 1} on")
    print(plan.table(mixed.loader.order))


def _show_schedule(arguments: list[str]) -> None:
    """The learning rates of a `train` recipe: a table, and a plot in its run directory."""
    root = verbs.load("train", arguments)
    from midjax.report import schedule_plot
    from midjax.train import prepare, timeline
    from midjax.train import start as start_lib
    from midjax.train.schedules import table

    origin = start_lib.choose(root.start, root.run_dir)
    line = timeline.of(root.data, root.train_tokens, origin)
    curve = prepare.schedule(root, origin, line)
    print(table.text(table.rows(curve, line.first_count)))
    steps = table.sampled(curve)
    where = schedule_plot.write(
        f"{root.run_dir}/schedule.svg",
        tokens=[float(curve.clock.tokens(step)) for step in steps],
        rates=curve.lrs(steps).tolist(),
        turns=[(span.name, float(span.first_tokens)) for span in curve.spans],
    )
    print(f"plot: {where}")


def _show_lineage(arguments: list[str]) -> None:
    """The stages of a run's checkpoint, since pretraining."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    step = given.get("--step")
    if not given.get("--run") or given.keys() - {"--run", "--step"} or not (step or "0").isdigit():
        raise ValueError(
            f"show lineage takes --run=DIR and, for another than the newest checkpoint, --step=N; "
            f"got {arguments}"
        )
    from midjax import lineage

    at = verbs.chosen(given["--run"], None if step is None else int(step))
    print(lineage.text(lineage.of(given["--run"], at)))
