# SPDX-License-Identifier: Apache-2.0
"""Files of both forms, which paragraphs stand around the gold one, and that none gives it away."""

import json
import re

import pytest

from midjax.evals.long import draft, questions

ARTICLES = [
    {
        "paragraphs": [
            {
                "context": "Paris is in France.",
                "qas": [
                    {"question": "Where is Paris?", "answers": [{"text": "France"}] * 2},
                    {"question": "Why?", "answers": [], "is_impossible": True},
                ],
            },
            {"context": "Lyon is in France, too.", "qas": []},
            {"context": "Nice is sunny.", "qas": []},
        ]
    },
    {
        "paragraphs": [
            {
                "context": f"Filling {n}: Franceville is not it.",
                "qas": [{"question": f"Which? {n}", "answers": [{"text": f"Filling {n}"}]}],
            }
            for n in range(30)
        ]
    },
]


def written(folder, data):
    (folder / "data.json").write_text(json.dumps(data))
    return str(folder / "data.json")


def test_squad(tmp_path):
    data = questions.read("qa_squad", written(tmp_path, {"data": ARTICLES}))
    assert len(data.questions) == 31 and len(data.paragraphs) == 33
    assert data.questions[0] == questions.Question(
        text="Where is Paris?", answers=("France",), needed=(0,), near=(1, 2)
    )
    assert data.answers[:2] == ("France", "Filling 0")


def asked_first(data, text):
    """A draft of the question with this text."""
    for sample in range(len(data.questions)):
        one = questions.make(data, sample, 4)
        if f"Question: {text} Answer:" in one.render(one.least_units, 0, ""):
            return one
    raise AssertionError(text)


def documents(text):
    return re.findall(r"Document \d+:\n(.+?)(?=\n\n)", text, re.DOTALL)


def test_paragraphs_around_the_gold_one(tmp_path):
    data = questions.read("qa_squad", written(tmp_path, {"data": ARTICLES}))
    one = asked_first(data, "Where is Paris?")
    # "Lyon is in France, too." would answer it; "Franceville" would not.
    assert set(documents(one.render(2, 0, ""))) == {"Paris is in France.", "Nice is sunny."}
    assert one.most_units == 31 and one.references == ("France",)
    whole = one.render(31, one.characters, "")
    numbers = [int(n) for n in re.findall(r"Document (\d+):", whole)]
    assert numbers == list(range(1, 33)) and "Lyon" not in whole
    assert one.render(2, 0, "").endswith("other words.\n\nQuestion: Where is Paris? Answer:")
    # A guess of any of the 31 answers.
    assert one.pool(whole) == 31
    decoys = one.decoys(whole, 50, draft.generator("d"))
    assert len(decoys) == 30 and "France" not in decoys
    places = set()
    for sample in range(31):
        text = questions.make(data, sample, 4).render(5, 0, "")
        places.add(documents(text).index(data.paragraphs[_needed(data, text)]))
    assert places == {0, 1, 2, 3, 4}


def _needed(data, text):
    asked = text.rpartition("Question: ")[2].removesuffix(" Answer:")
    return next(q.needed[0] for q in data.questions if q.text == asked)


HOTPOT = [
    {
        "question": "Is Ann older than Bob?",
        "answer": "yes",
        "supporting_facts": [["Ann", 0], ["Bob", 1]],
        "context": [
            ["Cid", ["Cid says yes."]],
            ["Ann", ["Ann is 9."]],
            ["Bob", ["Bob", " is 7."]],
        ],
    },
    {
        "question": "Who is 7?",
        "answer": "Bob",
        "supporting_facts": [["Bob", 0]],
        "context": [["Bob", ["Bob", " is 7."]], ["Dan", ["Dan knows Bob."]]],
    },
]


def test_hotpot(tmp_path):
    data = questions.read("qa_hotpot", written(tmp_path, HOTPOT))
    assert data.paragraphs == (
        "Cid\nCid says yes.", "Ann\nAnn is 9.", "Bob\nBob is 7.", "Dan\nDan knows Bob.",
    )  # fmt: skip
    one = asked_first(data, "Is Ann older than Bob?")
    assert one.least_units == 2
    assert set(documents(one.render(2, 0, ""))) == {"Ann\nAnn is 9.", "Bob\nBob is 7."}
    assert "Cid says yes." in one.render(3, 0, "")  # no text gives a yes away
    one = asked_first(data, "Who is 7?")
    assert "Dan" not in one.render(one.most_units, one.characters, "")


def test_files_as_they_are_published(tmp_path, capsys):
    """With all the fields of dev-v2.0.json and hotpot_dev_distractor_v1.json."""
    river = "The Aal is a river.  It is 31 km long – from Moor to Dorf."
    squad = {
        "version": "v2.0",
        "data": [
            {
                "title": "Aal_(river)",
                "paragraphs": [
                    {
                        "qas": [
                            {
                                "question": "How long is the Aal?",
                                "id": "5ad3",
                                "answers": [
                                    {"text": "31 km", "answer_start": 27},
                                    {"text": "31 km long", "answer_start": 27},
                                    {"text": "31 km", "answer_start": 27},
                                ],
                                "is_impossible": False,
                            },
                            {
                                "plausible_answers": [{"text": "Moor", "answer_start": 45}],
                                "question": "Who named the Aal?",
                                "id": "5ad4",
                                "answers": [],
                                "is_impossible": True,
                            },
                        ],
                        "context": river,
                    },
                    {"qas": [], "context": "Dorf has a mill."},
                ],
            }
        ],
    }
    data = questions.read("qa_squad", written(tmp_path, squad))
    assert data.questions == (
        questions.Question(
            text="How long is the Aal?", answers=("31 km", "31 km long"), needed=(0,), near=(1,)
        ),
    )
    assert data.paragraphs == (river, "Dorf has a mill.")
    assert "1 questions; 1 that have no answer are left out" in capsys.readouterr().out
    text = questions.make(data, 0, 1).render(2, 0, "")
    assert set(documents(text)) == {river, "Dorf has a mill."}

    hotpot = [
        {
            "_id": "5a8b",
            "answer": "Dorf",
            "question": "Where does the river end that begins at Moor?",
            "supporting_facts": [["Aal", 0], ["Aal", 1], ["Moor (hill)", 0]],
            "context": [
                ["Ems", ["The Ems is another river.", " It is longer."]],
                ["Aal", ["The Aal begins at Moor.", " It ends at Dorf."]],
                ["Moor (hill)", ["Moor is a hill."]],
            ],
            "type": "bridge",
            "level": "hard",
        }
    ]
    data = questions.read("qa_hotpot", written(tmp_path, hotpot))
    (one,) = data.questions
    assert (one.answers, one.needed, one.near) == (("Dorf",), (1, 2), (0,))
    assert data.paragraphs[1] == "Aal\nThe Aal begins at Moor. It ends at Dorf."

    squad["data"][0]["paragraphs"][0]["qas"][1]["is_impossible"] = False
    with pytest.raises(ValueError, match="1 questions have no answer .*'Who named the Aal"):
        questions.read("qa_squad", written(tmp_path, squad))


@pytest.mark.parametrize("data", [{}, [], {"data": [{"paragraphs": 3}]}])
def test_other_files_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"squad=.* is not what the task qa_squad reads"):
        questions.read("qa_squad", written(tmp_path, data))
