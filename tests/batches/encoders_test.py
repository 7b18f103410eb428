# SPDX-License-Identifier: Apache-2.0
"""Fast tokenizers: special tokens, BOS and EOS, and masks against transformers' own."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers

from midjax import demo_data, types
from midjax.batches import encoders, vocabulary
from midjax.corpora import chat, reading, text

FOLDER = str(demo_data.path("tokenizer"))
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
PLAIN = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
BOS_ID, EOS_ID = PLAIN.token_to_id(BOS), PLAIN.token_to_id(EOS)


def opened(**changes):
    given = {"path": FOLDER, "bos_token": BOS, "eos_token": EOS} | changes
    return vocabulary.FastTokenizer(**given).open()


def document(text, **changes):
    return types.Document(text=text, id="i", source="s", **changes)


def encode(encoder, *documents):
    return encoder.encode(list(documents))


def test_special_strings_are_special_only_where_a_format_put_them():
    text = f"a{EOS}b"
    as_text, special = encode(opened(), document(text), document(text, special=True))
    assert special.tokens.tolist() == [BOS_ID, *PLAIN.encode(text).ids, EOS_ID]
    assert as_text.tokens.tolist().count(EOS_ID) == 1 and len(as_text.tokens) > len(special.tokens)
    assert PLAIN.decode(as_text.tokens[1:-1].tolist()) == text


def test_a_format_that_put_bos_and_eos_gets_no_second_ones():
    (made,) = encode(opened(), document(f"{BOS}a{EOS}", special=True))
    assert made.tokens.tolist() == [BOS_ID, *PLAIN.encode("a").ids, EOS_ID]
    (bare,) = encode(opened(bos_token=None, eos_token=None), document("a"))
    assert bare.tokens.tolist() == PLAIN.encode("a").ids


def test_documents_of_all_kinds_in_one_batch_are_as_one_by_one():
    encoder = opened()
    documents = [
        document("plain"),
        document("some bear loss", loss=((5, 9),)),
        document(f"x{EOS}y", special=True),
        document(f"x{EOS}y", special=True, loss=((0, 1),)),
        document("ünïcode 😀"),
        document("none", loss=()),
    ]
    together = encoder.encode(documents)
    for one, made in zip(documents, together, strict=True):
        (alone,) = encoder.encode([one])
        assert made.tokens.tolist() == alone.tokens.tolist() and made.tokens.dtype == np.int32
        assert made.text_bytes == len(one.text.encode())
        assert (made.loss is None) == (one.loss is None)
        if made.loss is not None:
            assert made.loss.tolist() == alone.loss.tolist()
            assert made.loss.dtype == bool and len(made.loss) == len(made.tokens)
    assert not together[-1].loss.any()


@pytest.mark.parametrize("ending", ["", "\n", " \n"])
def test_eos_bears_loss_after_an_answer(ending):
    text = f"Q: 2+2? A: 4{ending}"
    answer, question = encode(
        opened(),
        document(text, loss=((11, 12),)),
        document(text, loss=((0, 7),)),
    )
    assert answer.loss[-1] and answer.tokens[-1] == EOS_ID
    assert not question.loss[-1] and question.loss[1] and not question.loss[0]
    assert [PLAIN.id_to_token(t) for t in answer.tokens[answer.loss]] == ["4", EOS]


def test_ranges_that_cut_tokens_take_the_tokens_that_hold_their_ends():
    text = "one information theory"
    encoding = PLAIN.encode(text)
    for begin, end in ((0, 1), (4, 9), (5, 6), (8, 22), (3, 4), (0, 22)):
        (made,) = encode(opened(), document(text, loss=((begin, end),)))
        first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
        expected = [first <= t <= last for t in range(len(encoding))]
        assert made.loss[1:-1].tolist() == expected


def test_characters_in_no_token_at_the_ends_of_a_range_are_left_out(tmp_path):
    """A tokenizer that skips blanks: transformers would take all of the text after such a range."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, "a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = opened(path=str(tmp_path), bos_token=None, eos_token=None)
    (found,) = encode(encoder, document("a  b  c", loss=((1, 6), (6, 6), (2, 3))))
    assert found.loss.tolist() == [False, True, False]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>"
    "{% endgeneration %}{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
)
TALKS = [
    [("user", "What is 2 + 2?"), ("assistant", "4.")],
    [
        ("system", "Be brief."),
        ("user", "  Say it in Chinese 😀 "),
        ("assistant", "四。 That is 4\n\n"),
        ("user", "And 3 + 3?"),
        ("assistant", "Six: ünïcode"),
    ],
]


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["chatml", "llama"])
def test_chat_masks_are_those_of_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers")
    markers = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
    made = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    made.add_special_tokens([*markers, "<|eot_id|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "bos_token": BOS, "eos_token": EOS})
    )
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    rows = [
        {"messages": [{"role": role, "content": said} for role, said in talk]} for talk in TALKS
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = text.JsonLines(
        path=str(path),
        format=chat.Chat(messages_field="messages", loss="answers"),
        id_field=None,
        max_bad_records=0,
    )
    encoder = opened(path=str(tmp_path))
    (unit,) = reader.units()
    documents = list(reader.documents("s", unit, reading.Tally(), encoder.tokenizer_facts))
    for row, found in zip(rows, encoder.encode(documents), strict=True):
        expected = theirs.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        begin = 0 if expected["input_ids"][0] == BOS_ID else 1
        assert found.tokens[0] == BOS_ID and found.tokens[-1] == EOS_ID
        assert found.tokens[begin:-1].tolist() == expected["input_ids"]
        assert found.loss[begin:-1].tolist() == [bool(x) for x in expected["assistant_masks"]]
        assert found.loss[-1] and 0 < found.loss.sum() < len(found.loss)


def test_the_chat_template_is_found_where_hugging_face_puts_it(tmp_path):
    def template():
        return opened(path=str(tmp_path)).tokenizer_facts.chat_template

    (tmp_path / "tokenizer.json").write_bytes(pathlib.Path(FOLDER, "tokenizer.json").read_bytes())
    assert template() is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one", "bos_token": {"content": "<b>"}}))
    assert template() == "one"
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "two"}]
    settings.write_text(json.dumps({"chat_template": several, "eos_token": "<e>"}))
    facts = opened(path=str(tmp_path), bos_token=None, eos_token=None).tokenizer_facts
    assert (facts.chat_template, facts.bos_token, facts.eos_token) == ("two", None, "<e>")
    (tmp_path / "chat_template.jinja").write_text("three")
    assert template() == "three"


def test_ids_with_gaps_give_a_vocabulary_that_holds_them(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70_000}, "a"))
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = opened(path=str(tmp_path), bos_token=None, eos_token=None)
    assert encoder.facts["vocab_size"] == 70_001 and encoder.unknown_id == 0
    assert encode(encoder, document("b"))[0].tokens.tolist() == [70_000]


def test_a_vocabulary_from_elsewhere_encodes_nothing():
    encoder = encoders.Elsewhere(tokenizer_hash="h", vocab_size=9, eos_id=1, unknown_id=None)
    assert encoder.facts == {"tokenizer_hash": "h", "vocab_size": 9, "bos_id": None, "eos_id": 1}
    with pytest.raises(AssertionError, match="come as tokens"):
        encode(encoder, document("a"))
