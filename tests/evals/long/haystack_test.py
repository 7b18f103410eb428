# SPDX-License-Identifier: Apache-2.0
"""Words of a token folder come back in their order, from each document on."""

import itertools
import string

import long_answers
import pytest

from midjax.evals.long import haystack


@pytest.fixture(scope="module")
def tokenizer():
    return long_answers.byte_level()


def test_words_go_through_all_documents_and_round(tmp_path, tokenizer):
    texts = ["One two  three.\n\nFour", "", "five Üsix", "seven"]
    stack = haystack.Haystack(
        long_answers.source(tmp_path / "a", tokenizer, texts), tokenizer.tokenizer, 3
    )
    begun = []
    for sample in range(6):
        words = list(itertools.islice(stack.words(sample), 14))
        assert words[:7] == words[7:]
        assert sorted(words[:7]) == sorted(
            ["One", "two", "three.", "Four", "five", "Üsix", "seven"]
        )
        begun.append(words[0])
    assert set(begun[:3]) == {"One", "five", "seven"} and begun[3:] == begun[:3]


def test_the_vocabulary_has_words_of_letters(tmp_path, tokenizer):
    letters = string.ascii_lowercase
    plain = [a + b + "yz" for a in letters[:10] for b in letters]
    odd = "ab Capital it's end. 1234 x2yz abcdefghijk über"
    source = long_answers.source(tmp_path / "a", tokenizer, [odd, " ".join(plain)])
    found = haystack.Haystack(source, tokenizer.tokenizer, 0).vocabulary()
    assert found == sorted([*plain, "über"])
    few = long_answers.source(tmp_path / "b", tokenizer, [" ".join(plain[:150])])
    with pytest.raises(ValueError, match="150 distinct words .*; 200 are needed"):
        haystack.Haystack(few, tokenizer.tokenizer, 0).vocabulary()
