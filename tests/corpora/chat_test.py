# SPDX-License-Identifier: Apache-2.0
"""Chat text and loss against transformers' `apply_chat_template`, in styles of real templates."""

import datetime
import json
import random
import types

import pytest
import tokenizers

from midjax import demo_data
from midjax.corpora import chat, formats, reading, text

# White space and control flow as in the templates of Qwen 2.5, Llama 3.1, Mistral 7B v0.2 and
# Gemma 2. G and E stand where a copy that marks answers has its generation tags.
CHATML = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- G %}{{- message.content }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {{- '\\n<tool_call>\\n' }}{{ call.function | tojson }}{{- '\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>' }}{%- E %}
        {{- '\\n' }}
    {%- elif not (message.role == 'system' and loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- G %}{{ message['content'] | trim + '<|eot_id|>' }}{% E %}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% G %}{{ message['content'] + eos_token}}{% E %}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant") }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' }}
    {%- if role == 'model' %}{% G %}{{ message['content'] | trim }}{{ '<end_of_turn>' }}{% E %}
    {%- else %}{{- message['content'] | trim }}{{ '<end_of_turn>' }}
    {%- endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
STYLES = {"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "gemma": GEMMA}
EACH = pytest.mark.parametrize("style", STYLES)
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip


def marked(style):
    return STYLES[style].replace("G %}", "generation %}").replace("E %}", "endgeneration %}")


def unmarked(style):
    # The tags' own white space control stays as it is.
    source = STYLES[style]
    for tag in ("G", "E"):
        source = source.replace(f"{{%- {tag} %}}", "{%- if true %}{% endif %}")
        source = source.replace(f"{{% {tag} %}}", "{% if true %}{% endif %}")
    return source


@pytest.fixture
def tokenizer(monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers.utils import chat_template_utils

    clock = types.SimpleNamespace(now=lambda: DATE)
    monkeypatch.setattr(chat_template_utils, "datetime", clock)
    core = tokenizers.Tokenizer.from_file(f"{demo_data.path('tokenizer')}/tokenizer.json")
    core.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


def facts(template, special=(*SPECIAL, "<|begin_of_text|>", "<|end_of_text|>")):
    return formats.TokenizerFacts(
        special_tokens=frozenset(special),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        chat_template=template,
    )


DATE = datetime.date(2024, 7, 26)
ANSWERS = chat.Chat(messages_field="messages", loss="answers", date=DATE.isoformat())
WORDS = [
    "yes", "no", "", "maybe\nfour\n\n", "5,", "ünï", "{{ x }}", "{% y %}", "<b>&amp;</b>", "'q'",
    '"z"', "\t", "end",
]  # fmt: skip


def conversation(rng, style):
    def words():
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 12))) + "."

    turns = []
    if style in ("chatml", "llama") and rng.random() < 0.5:
        turns.append({"role": "system", "content": words()})
    for _ in range(rng.randrange(1, 5)):
        turns.append({"role": "user", "content": words()})
        turns.append({"role": "assistant", "content": words()})
        if style == "chatml" and rng.random() < 0.3:
            call = {"name": "find", "arguments": {"q": words(), "n": 3}}
            turns[-1]["tool_calls"] = [{"function": call}]
            turns.append({"role": "tool", "content": words(), "name": None})
            turns.append({"role": "assistant", "content": words()})
    return turns


def token_mask(tokenizer, rendered):
    """Tokens of the text, and which bear loss by the ranges of characters."""
    encoded = tokenizer(rendered.text, add_special_tokens=False)
    mask = [0] * len(encoded["input_ids"])
    for begin, end in rendered.loss:
        first, last = encoded.char_to_token(begin), encoded.char_to_token(end - 1)
        mask[first : last + 1] = [1] * (last + 1 - first)
    return encoded["input_ids"], mask


@EACH
def test_tokens_and_masks_are_those_of_transformers(tokenizer, style):
    render = ANSWERS.open(facts(marked(style)))
    for seed in range(60):
        messages = conversation(random.Random(seed), style)
        expected = tokenizer.apply_chat_template(
            messages, chat_template=marked(style), tokenize=True,
            return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        rendered = render({"messages": messages}, "id")
        assert rendered.special
        tokens, mask = token_mask(tokenizer, rendered)
        assert tokens == expected["input_ids"] and mask == expected["assistant_masks"]
        assert 0 < sum(mask) < len(mask)


def test_question_and_answer_masks_are_those_of_transformers_as_a_chat(tokenizer):
    as_chat = (
        "Question: {{ messages[0].content }}\nAnswer: "
        "{% generation %}{{ messages[1].content }}{% endgeneration %}{{ '\n' }}"
    )
    form = formats.QuestionAnswer(
        question_field="q", answer_field="a", loss="answer",
        template="Question: {{ question }}\nAnswer: {{ answer }}\n\n",  # Jinja drops the last one
    )  # fmt: skip
    render = form.open(facts(None))
    for seed in range(60):
        messages = conversation(random.Random(seed), "mistral")[:2]
        expected = tokenizer.apply_chat_template(
            messages, chat_template=as_chat, tokenize=True,
            return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        rendered = render({"q": messages[0]["content"], "a": messages[1]["content"]}, "id")
        tokens, mask = token_mask(tokenizer, rendered)
        assert tokens == expected["input_ids"] and mask == expected["assistant_masks"]
        assert 0 < sum(mask) < len(mask)


@EACH
def test_without_generation_tags_the_loss_is_the_same(style):
    with_tags, without = (ANSWERS.open(facts(t)) for t in (marked(style), unmarked(style)))
    assert "generation %}" not in unmarked(style)
    for seed in range(60):
        record = {"messages": conversation(random.Random(seed), style)}
        expected = with_tags(record, "id")
        found = without(record, "id")
        assert found == expected


def test_the_loss_of_one_conversation_spelled_out():
    record = {
        "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    }
    ends = {
        "chatml": "<|im_end|>", "llama": "<|eot_id|>", "mistral": "<|end_of_text|>",
        "gemma": "<end_of_turn>",
    }  # fmt: skip
    for style, close in ends.items():
        for source in (marked(style), unmarked(style)):
            rendered = ANSWERS.open(facts(source))(record, "id")
            assert [rendered.text[begin:end] for begin, end in rendered.loss] == [f"4{close}"]


def test_loss_on_all_is_the_whole_text():
    everything = chat.Chat(messages_field="messages", loss="all")
    record = {"messages": [{"role": "user", "content": "only a question"}]}
    rendered = everything.open(facts(CHATML.replace("{%- G %}", "").replace("{%- E %}", "")))(
        record, "id"
    )
    assert rendered.loss is None and rendered.special and "only a question" in rendered.text


def test_reasoning_reaches_templates_under_its_names(tokenizer):
    source = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    for name in ("reasoning_content", "thinking", "reasoning"):
        messages = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", name: "because"},
        ]
        rendered = ANSWERS.open(facts(source))({"messages": messages}, "id")
        assert rendered.text == tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False
        )


def test_other_names_of_keys_and_roles():
    shared = chat.Chat(
        messages_field="conversations", loss="answers", role_key="from", content_key="value",
        roles={"human": "user", "gpt": "assistant"},
    )  # fmt: skip
    record = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    usual = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    known = facts(marked("chatml"))
    assert shared.open(known)(record, "id") == ANSWERS.open(known)(usual, "id")
    assert shared.fields() == {"conversations"}


PART = {"type": "text", "text": "a"}
NO_TEXT = "a message's content is neither text nor parts of text"
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
DROPS = [
    ({}, "no list of messages in field 'messages'"),
    ({"messages": []}, "no list of messages in field 'messages'"),
    ({"messages": "q"}, "no list of messages in field 'messages'"),
    ({"messages": ["q"]}, "a message is not an object"),
    ({"messages": [{"content": "q"}]}, "a message without a string 'role'"),
    ({"messages": [QUESTION]}, "no answer in the conversation"),
    ({"messages": [{"role": "user", "content": b"\xff"}]}, "invalid UTF-8"),
    ({"messages": [{"role": "user", "content": 5}, ANSWER]}, NO_TEXT),
    (
        {"messages": [QUESTION, {"role": "assistant", "content": [PART, {"type": "image"}]}]},
        NO_TEXT,
    ),
    ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, "an answer without content"),
    ({"messages": [QUESTION, {"role": "assistant", "content": ""}]}, "an answer without content"),
    (
        {"messages": [{"role": "user", "content": "x<|im_end|>\n<|im_start|>assistant\n"}, ANSWER]},
        "a message holds the special token '<|im_end|>'",
    ),
    (
        {"messages": [QUESTION, ANSWER | {"tool_calls": [{"function": {"name": "<|im_start|>"}}]}]},
        "a message holds the special token '<|im_start|>'",
    ),
]


def test_content_in_parts_of_text_is_their_text():
    render = ANSWERS.open(facts(marked("chatml")))
    parts = {"messages": [QUESTION, {"role": "assistant", "content": [PART, PART]}]}
    joined = {"messages": [QUESTION, {"role": "assistant", "content": "aa"}]}
    assert render(parts, "id") == render(joined, "id")


@pytest.mark.parametrize(("record", "reason"), DROPS)
@pytest.mark.parametrize("source", [marked("chatml"), unmarked("chatml")], ids=["tags", "no tags"])
def test_a_record_without_a_document_says_why(record, reason, source):
    with pytest.raises(formats.Drop) as caught:
        ANSWERS.open(facts(source))(record, "id")
    assert caught.value.reason == reason


def test_what_the_template_refuses_is_told_of_the_first(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"messages": [ANSWER, QUESTION]}, {"messages": [QUESTION, ANSWER]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = text.JsonLines(path=str(path), format=ANSWERS, id_field=None, max_bad_records=1)
    tally = reading.Tally()
    (unit,) = config.units()
    (document,) = config.documents("s", unit, tally, facts(marked("mistral")))
    assert document.special and document.id == "a.jsonl:2"
    assert document.loss == ((33, 49),) and document.text[33:49] == "a<|end_of_text|>"
    assert tally.dropped == {"refused by the chat template": 1}
    assert "line 1 (Conversation roles must alt" in tally.examples["refused by the chat template"]


def test_a_template_that_rewrites_earlier_turns_cannot_be_compared():
    # As templates of reasoning models do: what was thought is left out of all turns but the last.
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    render = ANSWERS.open(facts(source))
    thought = {"role": "assistant", "content": "<think>hm</think>a"}
    rendered = render({"messages": [QUESTION, thought]}, "id")
    assert [rendered.text[b:e] for b, e in rendered.loss] == ["<think>hm</think>a<|im_end|>"]
    with pytest.raises(formats.Drop, match="renders a turn differently in its place"):
        render({"messages": [QUESTION, thought, QUESTION, ANSWER]}, "id")


def test_a_tokenizer_that_cannot_serve_is_an_error():
    with pytest.raises(ValueError, match="needs the tokenizer's chat template, and this tokenizer"):
        ANSWERS.open(facts(None))
    with pytest.raises(ValueError, match="is not a Jinja template, line 1"):
        ANSWERS.open(facts("{% for %}"))
    dateless = chat.Chat(messages_field="messages", loss="answers")
    with pytest.raises(ValueError, match=r"Chat.date\) writes the current date"):
        dateless.open(facts(marked("llama")))
    with pytest.raises(ValueError, match="Chat.date must be YYYY-MM-DD, got 'today'"):
        chat.Chat(messages_field="messages", loss="answers", date="today")
