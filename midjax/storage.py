# SPDX-License-Identifier: Apache-2.0
"""What lies under checkpoints, a disk or a bucket: what its errors mean; how a folder is moved."""

import importlib.util

from etils import epath

from midjax import files

# Words in TensorStore's errors, which are ValueErrors, that speak of the way to the files, not of
# the files.
_PASSING = (
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)
# All that it says where it cannot write; a file beyond the limit of its size is "out of range".
_STATUS = (
    *_PASSING,
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "UNKNOWN",
)
# The object by which Orbax knows a whole checkpoint, in a bucket.
COMMIT = "commit_success.txt"


# What Orbax asks about a bucket with; gcsfs brings it.
_LIBRARY = "google.cloud.storage"


def check(run_dir: str) -> None:
    """Refuses a run directory in a bucket where what checkpoints need for it is not installed.

    Raises:
      ValueError: says what to install.
    """
    try:
        is_there = importlib.util.find_spec(_LIBRARY) is not None
    except ModuleNotFoundError:  # a package above it
        is_there = False
    if files.is_remote(run_dir) and not is_there:
        raise ValueError(
            f"{run_dir} is in a bucket, and {_LIBRARY}, with which checkpoints are written there, "
            "is not installed: pip install 'midjax[gcs]', or give a local folder."
        )


def is_passing(error: BaseException) -> bool:
    """Whether an error of TensorStore's in reading may pass, with the files as they are."""
    return any(word in str(error) for word in _PASSING)


def is_of_storage(error: BaseException) -> bool:
    """Whether an error in writing, or in listing, came from the disk or the bucket."""
    if isinstance(error, OSError) or files.is_of_network(error):
        return True
    return isinstance(error, ValueError) and any(word in str(error) for word in _STATUS)


def move(source: epath.Path, target: epath.Path, why: str) -> None:
    """Moves a checkpoint's folder. Interrupted at any point, it does not count, or is where it was.

    A bucket copies and deletes object by object. What an interruption leaves behind there lacks the
    object that makes it whole, and is deleted when that step is saved again.

    Args:
      source, target: folders; there is nothing at the target.
      why: for people who find it.
    """
    if not files.is_remote(source):
        source.rename(target)
        return
    (source / COMMIT).unlink(missing_ok=True)  # from here on it does not count
    source.rename(target)
    # Without it Orbax would take the folder for a save that was interrupted.
    (target / COMMIT).write_text(f"moved from {source}: {why}\n")
