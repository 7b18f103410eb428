# SPDX-License-Identifier: Apache-2.0
"""The step is compiled while the first state is read or made: both take their time, minutes of a
large model, and neither needs the other.
"""

import threading
from typing import Any

import jax

from midjax.train import prepare, program, restore


class Early:
    """The steps of a run, of which the first is traced, and compiled in a thread of its own from
    now on.

    JAX keeps what it has compiled: the step's first call finds it. Where it does not, as that call
    has arguments of other kinds, the call compiles, and nothing is lost but time.

    Attributes:
      steps: rows of a batch -> the jitted step: a state, which is used up, and a batch on the mesh.
        A batch of another size is another program.

    Args:
      prepared: the run; with no update left nothing is compiled.
      mesh: of its devices.
    """

    def __init__(self, prepared: prepare.Prepared, mesh: jax.sharding.Mesh) -> None:
        timeline, state = prepared.timeline, restore.abstract_state(prepared, mesh)
        self.steps = program.steps(
            prepared.config,
            prepared.optimizer,
            prepared.schedule,
            state,
            mesh,
            timeline.sizes().values(),
        )
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if prepared.first_step < prepared.total_steps:
            rows = timeline.batch_rows(prepared.first_step + 1)
            batch = program.batch(mesh, rows, timeline.row_tokens)
            with jax.set_mesh(mesh):
                # Here, as Python does one thing at a time: what takes longest begins soonest.
                lowered = self.steps[rows].lower(state, batch)
            self._thread = threading.Thread(target=self._compile, args=(lowered,), name="compiling")
            self._thread.start()

    def _compile(self, lowered: Any) -> None:
        try:
            lowered.compile()
        except BaseException as error:  # told where the step is needed
            self._error = error

    def join(self) -> None:
        """Until the thread has ended, for better or worse."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Until the step is compiled.

        Raises:
          what JAX or its compiler raised.
        """
        self.join()
        if self._error is not None:
            raise self._error
