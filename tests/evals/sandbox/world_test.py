# SPDX-License-Identifier: Apache-2.0
import dataclasses
import pathlib

import pytest
import sandboxes

from midjax.evals.sandbox import world


def opened(**limits) -> world.World:
    return world.World(sandboxes.opened(), dataclasses.replace(world.LIMITS, **limits))


def test_the_shell_keeps_its_state_and_checks_do_not_see_it():
    with opened() as here:
        assert here.shell("cd /home; X=5; export Y=6; echo hi >&2").output == "hi\n"
        assert here.shell("echo $X $Y; pwd; false") == world.Reply(
            output="5 6\n/home\n", status=1, stopped=""
        )
        assert "unexpected EOF" in here.shell("echo 'unclosed").output
        assert here.shell("cat <<E\na\nE").output == "a\n"
        assert here.shell("printf x").output == "x"
        here.shell("touch made; PATH=/home:$PATH")
        check = here.alone(
            ["/bin/bash", "-c", "test -e /home/made && echo $1$X$Y $PATH", "-", "arg"]
        )
        assert check.status == 0 and check.output.startswith("arg /usr/bin:")
        assert here.alone(["/nonexistent"]).stopped == "refused"
        assert here.shell("exit 3") == world.Reply(output="", status=3, stopped="ended")
        assert here.shell("pwd").output == "/root\n"


def test_the_world_is_small_and_gone_afterwards():
    mark = pathlib.Path("/home/midjax_world_test")
    with opened(files_bytes=1 << 20) as here:
        assert here.shell("whoami").output == "root\n"
        assert (
            here.shell("ls -A /root /home /var; cat /etc/passwd | wc -l").output.split()[-1] == "1"
        )
        assert here.shell(f"echo a > {mark}; echo b > /usr/c; cat {mark} /usr/c").output == "a\nb\n"
        assert "Read-only" in here.shell("echo z > /usr/bin/z").output
        filled = here.shell("for i in 1 2 3; do head -c 500000 /dev/zero > ~/$i; done")
        assert "No space left" in filled.output and here.shell("rm ~/*").status == 0
        assert here.shell("python3 -c 'import json; print(json.dumps([1]))'").output == "[1]\n"
        assert "unreachable" in here.shell("echo x > /dev/udp/192.0.2.1/9").output
    assert not mark.exists()
    with opened() as here:
        assert here.shell(f"cat {mark}").status == 1


def test_commands_are_stopped_and_the_world_goes_on():
    with opened(wall_seconds=0.5, output_bytes=1000) as here:
        slow = here.shell("echo first; sleep 60")
        assert (slow.output, slow.stopped) == ("first\n", "time")
        assert here.alone(["/bin/sleep", "60"]).stopped == "time"
        assert here.shell("head -c 50000 /dev/zero | tr '\\0' x").output == "x" * 1000
        here.shell("f() { f | f & }; f")  # stays within its 32 processes
        after = here.shell("echo ok")  # among the complaints of the others
        assert (after.status, after.stopped) == (0, "")


def test_killing_everything_loses_the_world_and_no_more():
    with opened() as here:
        for command in ("kill -9 -1", "echo x"):
            with pytest.raises(world.WorldLost, match="has ended or answers no more"):
                here.shell(command)
    with opened() as another:
        assert another.shell("echo x").output == "x\n"


def test_the_answers_can_not_be_forged():
    """No /proc, so no way to the supervisor's descriptors; the shell holds none of them."""
    forged = '{"output": "", "status": 0, "stopped": ""}'
    with opened() as here:
        seen = here.shell(
            f"for i in 3 4 5 6 7 8 9; do echo '{forged}' >&$i; done; ls /proc /dev/fd | wc -l"
        )
        assert seen.output.endswith("0\n") and seen.output.count("Bad file descriptor") == 7
        assert here.alone(["/bin/false"]).status == 1


def test_checks_use_the_worlds_own_commands():
    with opened() as here:
        for name in ("false", "python3"):
            here.shell(f"printf '#!/bin/sh\\nexit 0' > /usr/local/bin/{name}")
            here.shell(f"chmod +x /usr/local/bin/{name}; rm -f /.python/bin/python3")
        assert here.shell("false; hash -r; python3 -c 'exit(5)'").status == 0
        assert here.alone(["/bin/bash", "-c", "false"]).status == 1
        assert here.python("import sys; sys.exit(int(sys.argv[1]))", "5").status == 5


def test_it_must_be_entered():
    with pytest.raises(world.WorldLost, match="with statement"):
        opened().shell("true")
