# SPDX-License-Identifier: Apache-2.0
"""Where model-written code runs, if at all.

    selftest.open --> run.Sandbox --run(programs)--> verdicts
        |                  |
        |                  +-- bubblewrap, seccomp: the walls;  inside: what runs between them
        |                  +-- world.World: a shell that lives as long as an agent's episode
        +-- program.SandboxUnavailable, with the reasons, unless every probe is contained

Code tasks are refused without it. It is a strong wall, not a perfect one: the kernel is shared, so
that a fault in it is a way out, and side channels (timing, load) are open. Models that you distrust
belong on a machine that holds nothing else.
"""
