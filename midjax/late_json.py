# SPDX-License-Identifier: Apache-2.0
"""A JSON item of a checkpoint whose content is made in the background.

Orbax's own JSON handler wants the content when a save begins, when the devices may not have made
yet what it tells of.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

from midjax.distributed import group


class Handler(ocp.AsyncCheckpointHandler):
    """Writes the item before Orbax calls the checkpoint finished. For saving alone."""

    async def async_save(self, directory: Any, args: "Save") -> list[ocp.future.Future]:
        """Begins to make and write it.

        Args:
          directory: of the item, an `epath.Path` (or what stands for one).
          args: what is to be written.
        """

        async def write() -> None:  # in a thread of its own
            made = args.make()
            if group.is_first():
                (directory / "metadata").write_text(json.dumps(made))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="late_json")]

    def save(self, directory: Any, args: "Save") -> None:
        raise NotImplementedError("saved asynchronously only")

    def restore(self, directory: Any, args: Any = None) -> Any:
        raise NotImplementedError("read by midjax.checkpoint.read_facts")


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
    """What a save is given.

    Attributes:
      make: gives the content; called once, in a thread of Orbax's, and may wait for the devices.
        What it raises fails the save: the checkpoint is never listed.
    """

    make: Callable[[], dict[str, Any]]
