# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: help, mistakes, and one clear line for each."""

import pytest

import midjax
from midjax import __main__ as cli
from midjax import config


def test_help_names_every_verb(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in cli.VERBS)
    for verb in cli.VERBS:
        assert cli.main([verb, "--help"]) == 0
        assert f"midjax {verb}" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.strip() == midjax.__version__


def test_recipes_that_help_names_exist():
    root = config.gin_root()
    for verb in cli.VERBS.values():
        for word in verb.details.split():
            if word.startswith("--gin_file="):
                name = word.removeprefix("--gin_file=gin/")
                assert (root / name).is_file(), word


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["trian"], "no verb 'trian'"),
        (["train", "--steps=3"], "unknown arguments ['--steps=3']"),
        (["train", "--gin_file=nothing.gin"], "No gin file 'nothing.gin'"),
        (["show"], "show needs one of tokenize, import, train"),
        (["demo", "--quick"], "unknown arguments ['--quick']"),
        (["export", "--gin.Export.runn=x"], "runn"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(capsys, line, message):
    assert cli.main(line) == 2
    found = capsys.readouterr()
    assert message in found.err and "Traceback" not in found.err and not found.out


def test_an_error_of_a_bucket_is_one_message_and_a_bug_keeps_its_traceback(capsys, monkeypatch):
    kind = type(
        "NotFoundError", (Exception,), {"__module__": "tensorflow.python.framework.errors_impl"}
    )

    def fails(error):
        def run(arguments):
            raise error

        return cli.Verb(run, "", "")

    monkeypatch.setitem(cli.VERBS, "tokenize", fails(kind("gs://b/x: no such object")))
    assert cli.main(["tokenize"]) == 2
    assert capsys.readouterr().err == "midjax tokenize: gs://b/x: no such object\n"
    outage = type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 503})
    for code, exit_code in ((503, 171), (400, 2)):  # what may pass, and what does not
        error = outage("gs://b/x: no")
        error.code = code
        monkeypatch.setitem(cli.VERBS, "train", fails(error))
        assert cli.main(["train"]) == exit_code
    capsys.readouterr()
    monkeypatch.setitem(cli.VERBS, "tokenize", fails(KeyError("bug")))
    with pytest.raises(KeyError):
        cli.main(["tokenize"])
