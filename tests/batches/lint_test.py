# SPDX-License-Identifier: Apache-2.0
"""What is counted as harmful, and what is said of it. Scripts against Unicode's own names."""

import sys
import unicodedata

import numpy as np
import pytest
import tokenizers

from midjax import demo_data, types
from midjax.batches import lint, vocabulary

FOLDER = str(demo_data.path("tokenizer"))
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
NAMES = {
    "LATIN": "Latin", "GREEK": "Greek", "CYRILLIC": "Cyrillic", "ARMENIAN": "Armenian",
    "HEBREW": "Hebrew", "ARABIC": "Arabic", "DEVANAGARI": "Devanagari", "BENGALI": "Bengali",
    "GURMUKHI": "Gurmukhi", "GUJARATI": "Gujarati", "ORIYA": "Oriya", "TAMIL": "Tamil",
    "TELUGU": "Telugu", "KANNADA": "Kannada", "MALAYALAM": "Malayalam", "SINHALA": "Sinhala",
    "THAI": "Thai", "LAO": "Lao", "TIBETAN": "Tibetan", "MYANMAR": "Myanmar",
    "GEORGIAN": "Georgian", "HANGUL": "Hangul", "ETHIOPIC": "Ethiopic", "KHMER": "Khmer",
    "MONGOLIAN": "Mongolian", "HIRAGANA": "Kana", "KATAKANA": "Kana", "CJK": "Han",
}  # fmt: skip


def opened(**changes):
    given = {"path": FOLDER, "bos_token": BOS, "eos_token": EOS} | changes
    return vocabulary.FastTokenizer(**given).open()


def counted(encoder, *texts, special=False):
    checker = lint.Lint(encoder)
    documents = [types.Document(text=t, id="i", source="s", special=special) for t in texts]
    for document, made in zip(documents, encoder.encode(documents), strict=True):
        checker.see(document, made)
    return checker.take()


def test_letters_have_the_script_that_their_names_begin_with():
    wrong = {}
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        if unicodedata.category(character) not in ("Ll", "Lu", "Lo", "Lt"):
            continue
        name = unicodedata.name(character, "").split(" ")[0]
        if name in NAMES and (found := lint.script_of(character)) != NAMES[name]:
            wrong.setdefault((NAMES[name], found), []).append(point)
    # Historic and rare letters outside the main blocks.
    rare = {key: points for key, points in wrong.items() if len(points) > 5}
    assert set(rare) <= {
        ("Ethiopic", "Other"), ("Kana", "Other"), ("Kana", "Common"), ("Han", "Common"),
        ("Cyrillic", "Latin"), ("Latin", "Common"), ("Greek", "Latin"), ("Latin", "Other"),
        ("Cyrillic", "Other"), ("Mongolian", "Other"), ("Arabic", "Other"), ("Latin", "Arabic"),
    }, {key: [hex(p) for p in points[:4]] for key, points in rare.items()}  # fmt: skip
    assert sum(map(len, wrong.values())) < 900


def test_the_script_of_a_text_is_that_of_most_letters():
    assert lint.script_of("plain, 123") == lint.script_of("") == lint.script_of("…“”—") == "Latin"
    assert lint.script_of("Статья о языке Python") == "Cyrillic"
    assert lint.script_of("これは日本語のテキスト" * 500 + "latin" * 100) == "Kana"
    assert lint.script_of("\ud800") == "Latin"


def test_special_tokens_are_counted_without_bos_and_eos(tmp_path):
    made = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = opened(path=str(tmp_path))
    chat = f"<|im_start|>a<|im_end|><|im_start|>b<|im_end|>{EOS}"
    counts = counted(encoder, chat, "plain", special=True)
    assert counts["special"] == {"<|im_end|>": 2, "<|im_start|>": 2} and not counts["spelled"]
    counts = counted(encoder, chat, "plain", "a < b", f"x{EOS}")
    assert not counts["special"]
    assert counts["spelled"] == {"<|im_start|>": 1, "<|im_end|>": 1, EOS: 2}
    (said,) = lint.warnings(counts, 4)
    assert said.startswith("texts spell special tokens '<|end_of_text|>' 2, '<|im_end|>' 1")


def test_unknown_tokens_are_counted(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, "?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    counts = counted(opened(path=str(tmp_path), bos_token=None, eos_token=None), "a b a", "c")
    assert counts["unknown"] == 2 and not counts["special"]
    assert any(said.startswith("2 unknown tokens") for said in lint.warnings(counts, 2))


def test_a_script_that_the_tokenizer_hardly_knows_is_told():
    english, chinese = "The cat sat on the mat, and then it slept. " * 10, "明天我们去北京吃饭" * 20
    counts = counted(opened(), english, chinese, chinese, "短")
    assert counts["scripts"]["Latin"][3] == 0 and counts["scripts"]["Han"][:1] == [3]
    assert counts["scripts"]["Han"][3] == 2  # the short one has too few tokens for a rate
    (said,) = lint.warnings(counts, 4)
    assert said.startswith("2 of 3 documents in Han script have fewer than 1.5 bytes per token")
    bytes_alone = counted(vocabulary.ByteTokenizer(add_eos=True).open(), chinese)
    assert not lint.warnings(bytes_alone, 1)
    few = counts | {"scripts": {"Latin": [1000, 4000, 1000, 9]}}
    assert not lint.warnings(few, 1000)


def test_very_long_documents_are_told(monkeypatch):
    monkeypatch.setattr(lint, "LONG_TOKENS", 100)
    counts = counted(opened(), "word " * 300, "short")
    assert counts["long"] == 1
    assert lint.warnings(counts, 2)[0].startswith("1 of 2 documents have more than 100 tokens")


def test_documents_that_come_as_tokens_are_counted_too():
    checker = lint.Lint(opened())
    pad = 2
    made = types.TokenDocument(
        tokens=np.array([5, pad, pad], np.int32), loss=None, text_bytes=3, id="i", source="s"
    )
    checker.see(None, made)
    assert checker.take()["special"] == {"<|pad|>": 2}
    assert checker.take() == lint.Counts().to_json()  # what was taken is not counted again


@pytest.mark.parametrize("split", [0, 1, 2, 3])
def test_counts_of_parts_add_up(split):
    texts = ["ünïcode", f"a{EOS}", "Статья"]
    whole, encoder = lint.Counts(), opened()
    whole.add(counted(encoder, *texts[:split]))
    whole.add(counted(encoder, *texts[split:]))
    assert whole.to_json() == counted(encoder, *texts)
