# SPDX-License-Identifier: Apache-2.0
"""What runs beside the clock: begun now, waited for later."""

import collections
import dataclasses
from collections.abc import Callable

from midjax.plan import tally

Finish = Callable[[float, float], None]  # of (seconds waited for it, seconds that it takes)


@dataclasses.dataclass
class _Pending:
    ends: float
    seconds: float
    finish: Finish


class Lanes:
    """Things of a chip that work while it does something else, each on one thing at a time.

    Args:
      clock: whose `seconds` are the time. What `finish` adds to it is time that passes.
    """

    def __init__(self, clock: tally.Tally) -> None:
        self._clock = clock
        self._free: dict[str, float] = collections.defaultdict(float)
        self._pending: dict[str, _Pending] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._pending

    def start(self, name: str, lane: str, seconds: float, finish: Finish) -> None:
        """Begins it, now or when its lane is free; `finish` is called when it is waited for."""
        begins = max(self._clock.seconds, self._free[lane])
        self._free[lane] = begins + seconds
        self._pending[name] = _Pending(begins + seconds, seconds, finish)

    def wait(self, name: str) -> None:
        """Waits for it; of something that was never started here, does nothing."""
        found = self._pending.pop(name, None)
        if found is not None:
            found.finish(max(0.0, found.ends - self._clock.seconds), found.seconds)

    def leave(self) -> list[str]:
        """Names of what nobody has waited for, taken as done beside other work."""
        names = list(self._pending)
        for name in names:
            one = self._pending.pop(name)
            one.finish(0.0, one.seconds)
        return names
