# SPDX-License-Identifier: Apache-2.0
import json

import corpora_reading as reader
import numpy as np
import pytest

from midjax.corpora import formats, text


def reason(form, record):
    with pytest.raises(formats.Drop) as caught:
        form.open(reader.FACTS)(record, "id")
    return caught.value.reason


def test_text_is_the_field():
    form = formats.Text(field="body")
    assert form.open(reader.FACTS)({"body": "x", "y": 1}, "id") == formats.Rendered(text="x")
    assert form.open(reader.FACTS)({"body": "ü".encode()}, "id").text == "ü"
    assert form.fields() == {"body"}
    assert reason(form, {"text": "x"}) == "no string field 'body'"
    assert reason(form, {"body": None}) == "no string field 'body'"
    assert reason(form, {"body": b"\xff"}) == "invalid UTF-8"


def test_a_template_joins_fields():
    form = formats.Template(
        template="# {{ title }}\n{% if author is defined %}by {{ author }}\n{% endif %}{{ text }}"
    )
    render = form.open(reader.FACTS)
    assert form.fields() == {"title", "author", "text"}
    assert render({"title": "T", "text": b"body"}, "id").text == "# T\nbody"
    assert render({"title": "T", "text": "b", "author": "A"}, "id").text == "# T\nby A\nb"
    assert render({"title": "T", "text": "b", "author": None}, "id").text == "# T\nb"
    rendered = render({"title": "{{ x }}", "text": "<b>"}, "id")  # a record is no template
    assert rendered == formats.Rendered(text="# {{ x }}\n<b>")
    assert reason(form, {"title": "T"}) == "no field 'text'"
    assert reason(form, {"title": "T", "text": None}) == "no field 'text'"
    assert reason(form, {"title": "T", "text": b"\xff"}) == "invalid UTF-8"
    assert reason(formats.Template(template="{{ x.y }}"), {"x": {}}) == "no field 'y'"
    assert reason(formats.Template(template="{{ x / 0 }}"), {"x": 1}) == "refused by the template"
    with pytest.raises(ValueError, match="Template.template is not a Jinja template, line 1"):
        formats.Template(template="{{ x ")


def qa(loss="answer", template="Q: {{ question }}\nA: {{ answer }}", answer="answer"):
    return formats.QuestionAnswer(
        question_field="question", answer_field=answer, template=template, loss=loss
    )


def test_question_and_answer_with_loss_on_the_answer():
    rendered = qa().open(reader.FACTS)({"question": "2+2?", "answer": "4"}, "id")
    assert rendered == formats.Rendered(text="Q: 2+2?\nA: 4", loss=((11, 12),))
    everything = qa("all").open(reader.FACTS)({"question": "2+2?", "answer": "4"}, "id")
    assert everything == formats.Rendered(text="Q: 2+2?\nA: 4")


def test_a_template_of_its_own_marks_and_fields():
    form = qa(
        template=(
            "{{ context }}\n{{ question }}{% generation %} {{ answer.split('####')[-1] }}."
            "{% endgeneration %}\n"
        )
    )
    record = {"context": "C", "question": "Q", "answer": "because#### 4"}
    rendered = form.open(reader.FACTS)(record, "id")
    assert rendered.text == "C\nQ  4." and rendered.loss == ((3, 7),)
    assert form.fields() == {"context", "question", "answer"}
    assert reason(form, {"question": "Q", "answer": "A"}) == "no field 'context'"


@pytest.mark.parametrize("answers", [
    {"text": ["first", "second"]},
    {"text": np.array([b"first", b"second"], object)},  # as TFDS gives them
])  # fmt: skip
def test_fields_inside_fields(answers):
    form = qa(answer="answers.text.0")
    rendered = form.open(reader.FACTS)({"question": "Q", "answers": answers}, "id")
    assert rendered.text == "Q: Q\nA: first" and form.fields() == {"question", "answers"}
    dropped = {"question": "Q", "answers": {"text": []}}
    assert reason(form, dropped) == "no string field 'answers.text.0'"
    listed = qa(answer="answers.0.text")
    record = {"question": "Q", "answers": [{"text": "first"}]}
    assert listed.open(reader.FACTS)(record, "id").text == "Q: Q\nA: first"


def test_what_has_no_answer():
    assert reason(qa(), {"question": "Q"}) == "no string field 'answer'"
    assert reason(qa(), {"question": "Q", "answer": " "}) == "empty field 'answer'"
    assert reason(qa(), {"question": "Q", "answer": 4}) == "no string field 'answer'"
    sometimes = qa(template="{{ question }}{% if false %}{{ answer }}{% endif %}")
    assert reason(sometimes, {"question": "Q", "answer": "A"}) == "no answer in the text"
    with pytest.raises(ValueError, match="template does not use 'answer': 'Q: {{ question }}'"):
        qa(template="Q: {{ question }}")


def test_documents_carry_loss_and_the_other_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"question": "2+2?", "answer": "4", "level": 1}, {"question": "?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = text.JsonLines(path=str(path), format=qa(), id_field=None, max_bad_records=1)
    (document,), tally = reader.read(config)
    assert document.loss == ((11, 12),) and not document.special and document.meta == {"level": 1}
    assert tally.dropped == {"no string field 'answer'": 1}
