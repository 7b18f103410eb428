# SPDX-License-Identifier: Apache-2.0
"""What the root `Eval` refuses by itself, and that recipes from before tasks load as they were."""

import pytest

from midjax import config
from midjax.evals import recipe, suite
from midjax.model import sharding

MESH = sharding.Mesh(data=1, fsdp=1, tensor=1)
TASKS = suite.Tasks(data="data", names=("arc_easy_rc",))


def an_eval(**changes):
    given = {"name": "a", "mesh": MESH, "run": "run", "tokenizer": "tokenizer", "tasks": TASKS}
    return recipe.Eval(**given | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": None}, "Eval.run .* or Eval.folder .*, one of them; got None and None"),
        ({"folder": "hf", "output": "out"}, "one of them; got 'run' and 'hf'"),
        ({"run": None, "folder": "hf"}, "Eval.output is where the results of Eval.folder"),
        ({"output": "out"}, "Eval.output is where"),
        ({"run": None, "folder": "hf", "output": "out", "step": 3}, "are of Eval.run"),
        ({"run": None, "folder": "hf", "output": "out", "weights": "ema"}, "are of Eval.run"),
        ({"tokenizer": None}, "Eval.tokenizer is not set"),
        ({"tasks": None}, "Eval asks nothing"),
        ({"domains": ("prose",)}, "Eval.tokens is not set"),
        ({"domains": ("prose",), "tokens": "t", "row_tokens": 8}, "needs Eval.row_tokens and"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        an_eval(**changes)


def test_a_folder_brings_its_tokenizer():
    found = an_eval(run=None, tokenizer=None, folder="hf", output="out")
    assert (found.model, found.tokenizer_folder) == ("hf", "hf")
    assert an_eval(run=None, folder="hf", output="out").tokenizer_folder == "tokenizer"


def test_a_recipe_from_before_tasks_loads(tmp_path):
    before = tmp_path / "before.gin"
    before.write_text(
        """
Eval.name = "after"
Eval.run = "runs/one"
Eval.step = None
Eval.tokens = "tokens"
Eval.domains = ("code", "prose")
Eval.row_tokens = 32
Eval.batch_rows = 2
Eval.long = None
Eval.samples = None
Eval.tokenizer = "tokenizer"
Eval.mesh = @Mesh()
Mesh.data = 1
Mesh.fsdp = -1
Mesh.tensor = 1
"""
    )
    found = config.load("eval", [str(before)])
    assert (found.domains, found.tasks, found.folder) == (("code", "prose"), None, None)
