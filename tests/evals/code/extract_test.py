# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.evals.code import extract


def test_a_completion_ends_where_the_next_statement_begins():
    text = "    return a\n\n\nprint(f(1))\ndef g(): pass"
    assert extract.cut(text, extract.FUNCTION_STOPS) == "    return a\n\n"
    assert extract.cut("    return a", extract.FUNCTION_STOPS) == "    return a"
    # Not inside the function: only at the start of a line.
    inner = "    if a:\n        print(a)  # yes\n    def h(): pass"
    assert extract.cut(inner, extract.FUNCTION_STOPS) == inner


def test_programs_end_at_the_done_mark_or_their_first_assertion():
    assert extract.cut("x = 1\n[DONE]\ny", extract.PROGRAM_STOPS) == "x = 1\n"
    assert extract.cut("def f(): pass\nassert f()", extract.PROGRAM_STOPS) == "def f(): pass"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nthen\n```\ny = 2\n```", "x = 1\n"),
        ("```\nx = 1\n", "x = 1\n"),
        ("```bash\nls\n```\n```py\nx = 1\n```", "x = 1\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("x = '```'", None),
        ("no code", None),
    ],
)
def test_the_first_python_block_is_taken(text, code):
    assert extract.fenced(text) == code


def test_code_in_prose_is_found_without_a_fence():
    text = "Sure! This works:\nimport math\ndef f(x):\n    return x\nHope that helps, it's short."
    assert extract.whole(text, "f") == "import math\ndef f(x):\n    return x\n"
    assert extract.whole("```python\ndef g(): pass\n```", "f") == "def g(): pass\n"
    assert extract.whole(text, "g") == text  # its failure is the verdict
    assert extract.whole("nothing here", "f") == "nothing here"


def test_what_stands_before_the_entry_point():
    prompt = "import math\n\ndef poly(xs):\n    return 1\n\n\ndef find(xs):\n    '''doc'''\n"
    assert extract.before(prompt, "find") == "import math\n\ndef poly(xs):\n    return 1\n\n\n"
    assert extract.before(prompt, "fin") == ""
