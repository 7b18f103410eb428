# SPDX-License-Identifier: Apache-2.0
"""Agents, in the parts that need no live service.

    tasks --os_tasks--> environments --+
                                       +--episode.play(agent)--> outcomes
    recordings --toolbench--> ---------+
    recorded steps --toolbench.score(what the model wrote)--> plan, action, arguments

`asked` plays the tasks of kind "agent" (os_tasks, toolbench_episodes) with the model of `midjax
eval` as the agent, all open episodes together; toolbench_steps asks step by step, as any task that
is written. Function calls by AST match (BFCL) are `calls`: its single-turn parts, Python. Left out
of BFCL: multi-turn, web search and memory, whose tools are programs of its own.

AgentBench (Liu et al. 2023, 2308.03688): its operating-system tasks, from its own files, in a
sandboxed world instead of a Docker container as root. `os_tasks.left_out` names the tasks that this
world can't hold: users and groups, package installation, network, /proc. The instruction is our own
wording of its protocol, so figures stand beside its published ones, not in their table. Left out:
its other seven environments (databases, knowledge graphs, card game, puzzles, households, two on
the web), which need servers or simulators.

ToolBench (Qin et al. 2023, 2307.16789): the static form, each step given the recorded ones before
it, scored against the recorded action; and whole episodes against recorded observations, where a
call that nobody recorded is an error that the agent sees and the outcome counts. Left out: live
calls of RapidAPI, StableToolBench's cached and simulated ones, and pass and win rates, which a
model decides.
"""
