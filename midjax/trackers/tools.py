# SPDX-License-Identifier: Apache-2.0
"""The programs that can show a run. Each class is a setting; `open` is called in a thread.

What happens to updates that are done again after a kill: TensorBoard shows the new ones in place
of the old; wandb and trackio take no step twice, so what they have stays, and it is the same as
long as the recipe and the devices are.
"""

import dataclasses
import importlib.util
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from midjax import files

# How long wandb may upload at the end: less than the sink waits for it.
FINISH_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a tracker is told.

    Attributes:
      run_dir: folder of the run.
      config: the recipe as plain JSON.
      first_step: updates done before this process.
      newest_step: newest update that an earlier process wrote down, whether it is kept or not.
    """

    run_dir: str
    config: Mapping[str, Any]
    first_step: int
    newest_step: int

    @property
    def name(self) -> str:
        """Last part of the run's folder."""
        return pathlib.PurePosixPath(self.run_dir).name

    @property
    def folder(self) -> str:
        """Where programs that know local files only write: beside the run, or, where that is in a
        bucket, in `midjax-trackers/` of the working folder."""
        if not files.is_remote(self.run_dir):
            return self.run_dir
        return str(pathlib.Path("midjax-trackers", *self.run_dir.partition("://")[2].split("/")))


class Writer(Protocol):
    """An opened tracker."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends one update's numbers."""

    def close(self) -> None:
        """Ends it; what was sent is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files for `tensorboard --logdir`, by tensorboardX: no TensorFlow.

    Attributes:
      folder: where; None is `tensorboard` in the run's folder, or, where that is in a bucket, in
        `midjax-trackers/` of the machine's working folder, which goes with the machine.
    """

    folder: str | None = None

    def open(self, run: Run) -> Writer:
        """Opens a new event file, which hides what older ones have of later updates."""
        import tensorboardX

        folder = self.folder or f"{run.folder}/tensorboard"
        writer = tensorboardX.SummaryWriter(
            folder,
            purge_step=run.first_step + 1,
            flush_secs=10,
            # Names have the second only, and a second file of that name would replace the first.
            filename_suffix=f".{run.first_step}",
        )
        return _TensorBoardWriter(writer)


class _TensorBoardWriter:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wandb:
    """A run of Weights & Biases. Needs `wandb login` before, or mode "offline".

    Attributes:
      project, entity: where it belongs; entity None is your default one.
      name: shown for it; None is the last part of the run's folder.
      mode: "offline" writes to the run's folder only, for `wandb sync` later; of a run in a bucket,
        to `midjax-trackers/` of the machine's working folder.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    mode: Literal["online", "offline"] = "online"

    def open(self, run: Run) -> Writer:
        """Opens the run, or goes on with that of an earlier process."""
        import wandb

        # By default it puts itself between the run and the terminal, and waits for the network
        # without end when the process ends.
        settings = wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS)
        opened = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run.name,
            id=_kept_id(run, "wandb", secrets.token_hex(4)),
            resume="allow",
            dir=run.folder,
            mode=self.mode,
            config=dict(run.config),
            settings=settings,
        )
        return _OnceWriter(opened, run.newest_step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trackio:
    """A run of trackio: a file on this machine (TRACKIO_DIR), or a Hugging Face Space.

    Attributes:
      project: where it belongs.
      name: shown for it; None is the last part of the run's folder with a number.
      space_id: "owner/name" of a Space; None is this machine.
    """

    project: str
    name: str | None = None
    space_id: str | None = None

    def open(self, run: Run) -> Writer:
        """Opens the run, or goes on with that of an earlier process."""
        import trackio

        # It knows runs by their names: without a number, another run's rows would be added to.
        name = self.name or f"{run.name}-{secrets.token_hex(4)}"
        opened = trackio.init(
            self.project,
            name=_kept_id(run, "trackio", name),
            space_id=self.space_id,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return _OnceWriter(opened, run.newest_step)


class _OnceWriter:
    """wandb's and trackio's run: each step once."""

    def __init__(self, run: Any, newest_step: int) -> None:
        self._run, self._newest_step = run, newest_step

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if step > self._newest_step:
            self._run.log(dict(numbers), step=step)
            self._newest_step = step

    def close(self) -> None:
        self._run.finish()


Tool = TensorBoard | Wandb | Trackio
# class -> (package, extra of midjax that installs it)
_PACKAGES: dict[type, tuple[str, str]] = {
    TensorBoard: ("tensorboardX", "tensorboard"),
    Wandb: ("wandb", "wandb"),
    Trackio: ("trackio", "trackio"),
}


def check(tools: Sequence[Tool]) -> None:
    """Raises ValueError where a package that a recipe asks for is not installed."""
    for tool in tools:
        package, extra = _PACKAGES[type(tool)]
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"Train.trackers has {type(tool).__name__}, and the package {package} is not "
                f"installed. Install it (pip install 'midjax[{extra}]'), or leave it out: "
                "metrics.jsonl has all of it."
            )


def _kept_id(run: Run, tool: str, new: str) -> str:
    """The id that an earlier process of this run had with a tool, or `new`, which is kept."""
    place = files.path(run.run_dir) / "trackers" / f"{tool}.json"
    if not place.exists():
        files.write_json(place, {"id": new})
    return files.read_json(place)["id"]
