# SPDX-License-Identifier: Apache-2.0
import shlex
import sys

import pytest

from midjax.launch import runner, spec


def test_no_shell_reads_the_words():
    argv = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "$(id)", "a b", "; exit 3"]
    done = runner.Local().run(argv)
    assert done == runner.Done(code=0, out="['$(id)', 'a b', '; exit 3']\n")
    command = runner.Command(argv=tuple(argv), why="a reason")
    assert shlex.split(command.line) == argv
    assert runner.script([command, command]).count("# a reason\n") == 2


def test_a_failure_is_told_with_its_command():
    code = "import sys; print('why it failed', file=sys.stderr); sys.exit(3)"
    with pytest.raises(spec.LaunchError, match=r"ended with code 3:\n  why it failed"):
        runner.must(runner.Local(), runner.Command(argv=(sys.executable, "-c", code)))


def test_a_program_that_is_not_there():
    assert runner.Local().has(sys.executable)
    assert not runner.Local().has("no-such-program-anywhere")
    assert runner.Local().run(["no-such-program-anywhere"]).code == 127
