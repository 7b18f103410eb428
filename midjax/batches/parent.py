# SPDX-License-Identifier: Apache-2.0
"""The process that started this one."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_it() -> None:
    """In a process of `multiprocessing`: ends it when its parent ends, however that comes about.

    Of itself, it would outlive a parent that was killed. Linux's own way, PR_SET_PDEATHSIG, is of
    no use: it ends a process with the thread that started it, which may be a passing one.
    """
    process = multiprocessing.parent_process()
    assert process is not None

    def watch() -> None:
        multiprocessing.connection.wait([process.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def is_gone() -> bool:
    """Whether the parent ended already."""
    process = multiprocessing.parent_process()
    assert process is not None
    return bool(multiprocessing.connection.wait([process.sentinel], timeout=0))
