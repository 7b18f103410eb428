# SPDX-License-Identifier: Apache-2.0
"""Task files: every shipped one loads, and wrong ones are refused with what is wrong."""

import pytest

from midjax.evals import task
from midjax.strict import fields

GOOD = """
source = "a test"
kind = "generate"
primary = "exact_match"
prompt = "{{question}}"
gold = "answer"
metrics = [{ name = "exact_match" }]

[data]
path = "x/{split}"
split = "test"
licence = "none"

[generate]
stop = ["\\n"]
max_new_tokens = 5
"""


def write(tmp_path, text, name="mine"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", task.shipped())
def test_shipped_tasks_load_and_name_their_data(name):
    found = task.load(name)
    assert found.name == name and found.source
    for member in found.members:
        assert task.load(member).kind != "group"
    if found.data is not None:
        assert found.data.licence
        assert found.data.hub or found.data.get, "where to get it"


def test_the_survey_is_covered():
    names = set(task.shipped())
    ten = "arc_challenge arc_easy boolq csqa hellaswag mmlu openbookqa piqa socialiqa winogrande"
    for name in [*ten.split(), "quality"]:
        assert {f"{name}_rc", f"{name}_mc"} <= names
    others = (
        "triviaqa naturalqs bbh gsm8k gsm8k_selection gsm8k_held_out math drop scrolls "
        "scrolls_narrative_qa humaneval mbpp infilling humanevalfix cruxeval bfcl arc_easy_harness "
        "boolq_harness mmlu_harness gsm8k_harness bbh_harness os_tasks "
        "toolbench_steps toolbench_episodes"
    )
    assert set(others.split()) <= names
    assert len(task.load("mmlu_rc").subsets) == 57 and len(task.load("bbh").subsets) == 27


def test_a_file_of_ones_own_loads(tmp_path):
    found = task.load(write(tmp_path, GOOD))
    assert found.name == "mine" and found.generate.stop == ("\n",) and found.shots.count == 0


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('prompt = "', 'promt = "', r"no field 'promt'.* Did you mean 'prompt'"),
        ("max_new_tokens = 5", 'max_new_tokens = "5"', r"max_new_tokens must be int, got '5'"),
        ('kind = "generate"', 'kind = "generat"', r"kind must be .*Did you mean 'generate'"),
        ('gold = "answer"', "", "needs 'gold'"),
        ("{{question}}", "{{question", "prompt is not a Jinja template"),
        ('gold = "answer"', 'gold = "answer("', "gold is not a Jinja expression"),
        ('name = "exact_match"', 'name = "exact_mach"', "Did you mean 'exact_match'"),
        ('primary = "exact_match"', 'primary = "f1"', r"primary is 'f1'; the metrics are"),
        ("max_new_tokens = 5", "max_new_tokens = 0", "max_new_tokens must be 1 or more, got 0"),
        (
            "max_new_tokens = 5",
            "max_new_tokens = 5\nsamples = 3",
            "at temperature 0 are all the same",
        ),
        ('"exact_match" }', '"exact_match", ignore = ["("] }', r"'\(' is not a regular expression"),
        ('"exact_match" }', '"exact_match", filters = [{ kind = "after" }] }', "needs a pattern"),
        ('"exact_match" }', '"exact_match", k = 2 }', "pass@2 needs as many samples, and .* is 1"),
        (r'stop = ["\n"]', 'stop = "x"', r"stop must be tuple\[str, ...\], got 'x'. Write a list"),
        ("[generate]", "[shots]\ncount = 1\n[generate]", "count is 1, and there are 0 examples"),
        ('source = "a test"', 'source = "a test', "is not TOML"),
        ("[data]", "[shots]\nexamples = [3]\n[data]", "shots.examples must be tables"),
        ('[{ name = "exact_match" }]', '[{ name = "acc" }]', "has no metric 'acc'"),
    ],
)
def test_wrong_files_are_refused(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(fields.ConfigError, match=message):
        task.load(write(tmp_path, GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("name", "over", "message"),
    [
        ("arc_easy_rc", "[generate]\nstop = []\nmax_new_tokens = 5", "writes nothing: leave out"),
        ("boolq_rc", '[shots]\npick = ""', "needs the expressions pick and content"),
        ("boolq_rc", "[shots]\ncount = 6", "count is 6, and 5 are picked"),
        ("boolq_rc", '[shots]\npicked = ["x"]\ncount = 1', "'x', which is not two times 16"),
        ("os_tasks", 'without = ["fields"]', "needs fields.turns"),
        ("os_tasks", "[shots]\ncount = 1\ntake = 'first'\nsplit = 'x'", "neither shots nor"),
        ("os_tasks", 'prompt = "{{turns}} {{description}}"', r"only; it has \['description'\]"),
        ("os_tasks", "[agent]\nrounds = 0", "agent.rounds must be 1 or more, got 0"),
        ("os_tasks", '[agent]\nscripts = ""', "agent.scripts is the scripts' folder of os_tasks"),
    ],
)
def test_what_does_not_fit_a_kind_is_refused(tmp_path, name, over, message):
    with pytest.raises(fields.ConfigError, match=message):
        task.load(write(tmp_path, f'base = "{name}"\n{over}\n', "other"))


def test_unknown_names_get_near_ones():
    with pytest.raises(fields.ConfigError, match="no task 'arc_eazy_rc'. Near: arc_easy_rc"):
        task.load("arc_eazy_rc")
    with pytest.raises(fields.ConfigError, match="There is no task file .*none.toml"):
        task.load("none.toml")
    with pytest.raises(fields.ConfigError, match="There is no task '../tasks/bbh'"):
        task.load("../tasks/bbh")


def test_a_base_is_merged_by_table(tmp_path):
    write(tmp_path, GOOD)
    over = 'base = "mine.toml"\nwithout = ["gold"]\ngold = "[answer]"\n[generate]\ntop_p = 0.5\n'
    found = task.load(write(tmp_path, over, "other"))
    assert found.gold == "[answer]" and found.prompt == "{{question}}"
    assert found.generate.top_p == 0.5 and found.generate.max_new_tokens == 5
    with pytest.raises(fields.ConfigError, match="without names 'code', which"):
        task.load(write(tmp_path, 'base = "mine.toml"\nwithout = ["code"]\n', "third"))


def test_bases_in_a_circle_are_refused(tmp_path):
    one, two = str(tmp_path / "one.toml"), str(tmp_path / "two.toml")
    write(tmp_path, f'base = "{two}"\n', "one")
    write(tmp_path, f'base = "{one}"\n', "two")
    with pytest.raises(fields.ConfigError, match="each other's base"):
        task.load(one)


def test_small_models_are_asked_by_ranked_choices():
    small, large = (
        task.load(task.recommended(1_000_000_000)),
        task.load(task.recommended(7 * 10**9)),
    )
    assert "arc_easy_rc" in small.members and "gsm8k_bpb_selection" in small.members
    assert "arc_easy_mc" in large.members and "gsm8k_selection" in large.members
    kinds = {task.load(member).kind for member in small.members}
    assert kinds == {"choice", "gold"}
