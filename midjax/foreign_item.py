# SPDX-License-Identifier: Apache-2.0
"""One item of a checkpoint that other code wrote with Orbax."""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from midjax import checkpoint, files, trees

# TensorStore's messages go on with a page of settings.
_MOST_CHARACTERS = 300


class ForeignItem:
    """A PyTree item that other code wrote with Orbax, read by name, without the code's own types.

    Attributes:
      arrays: "opt_state/0/mu/w" -> shape and dtype of every array in it. A path's parts are keys of
        dicts, fields of named tuples and numbers of lists: Orbax checks the length of a list, so
        what is in one is looked up by the names below it.

    Raises:
      checkpoint.CheckpointError: there is no such item.
    """

    def __init__(self, folder: str) -> None:
        self._folder = files.path(folder).resolve()
        # Not a Checkpointer, which warns of what only a whole step has.
        self._handler = ocp.PyTreeCheckpointHandler()
        try:
            self._tree = self._handler.metadata(self._folder).tree
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            reason = f"{type(error).__name__}: {str(error)[:_MOST_CHARACTERS]}"
            what = f"{folder} holds no PyTree item of Orbax: {reason}"
            raise checkpoint.CheckpointError(what) from error
        self.arrays = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in trees.named_leaves(self._tree)
            if hasattr(leaf, "shape")
        }

    def read(self, shardings: Mapping[str, jax.sharding.Sharding]) -> dict[str, jax.Array]:
        """The named arrays, each with its sharding; no other is read.

        Raises:
          checkpoint.CheckpointError: damaged, or out of reach.
        """

        def wanted(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in shardings:
                return ocp.PLACEHOLDER
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])

        item = jax.tree_util.tree_map_with_path(wanted, self._tree)
        how = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=how)
        try:
            found = dict(trees.named_leaves(self._handler.restore(self._folder, args=args)))
        except Exception as error:  # of a damaged file the library raises no narrower kind
            reason = f"{type(error).__name__}: {str(error)[:_MOST_CHARACTERS]}"
            raise checkpoint.CheckpointError(
                f"{self._folder} cannot be read: {reason}. Fetch the checkpoint again."
            ) from error
        return {name: found[name] for name in shardings}
