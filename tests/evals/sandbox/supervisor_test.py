# SPDX-License-Identifier: Apache-2.0
"""The shell's framing, outside of a sandbox and with harmless commands; world_test has the rest."""

import base64
import os
import subprocess

from midjax.evals.sandbox import supervisor


def test_a_marker_in_two_parts_is_found_and_what_exceeds_is_dropped():
    script = "printf 'aaaa%s' MAR; sleep 0.1; printf 'KER7\\nlater'; exec sleep 9"
    process = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE)
    with process:
        assert supervisor.drain(process, 5, 3, b"MARKER") == (b"aaa", b"7", "")
        process.kill()


def test_without_a_marker_it_reads_to_the_end():
    with subprocess.Popen(
        ["/bin/sh", "-c", "printf ab; exit 4"], stdout=subprocess.PIPE
    ) as process:
        assert supervisor.drain(process, 5, 9, b"") == (b"ab", b"", "ended")


def test_output_of_the_background_does_not_hide_the_status():
    shell = supervisor.Shell(dict(os.environ))
    try:
        noisy = "(for i in 1 2 3 4 5 6 7 8 9; do echo noise; done) & false"
        for _ in range(5):
            done = shell.run(noisy, 5, 1000)
            assert (done["status"], done["stopped"]) == (1, "")
        assert b"unbound" in base64.b64decode(shell.run("set -u; echo $no", 5, 1000)["output"])
    finally:
        if shell.bash is not None:
            shell.bash.kill()
            shell.bash.communicate()
