# SPDX-License-Identifier: Apache-2.0
"""Where contexts end and continuations begin. Each row of the tables is what lm_eval 0.4.13's
model `hf` does with the same tokenizer (tests/bench/eval_parity.py asks it itself)."""

import byte_pairs
import pytest

from midjax.evals import likelihood_tokens, requests

MERGED = ("abc", "Ġyes", "Ċb")


def opened(template=False, begins="as_it_says"):
    tokenizer = byte_pairs.make(*MERGED, template=template)
    return likelihood_tokens.Tokenizer(tokenizer=tokenizer, prefix_id=0, begins=begins)


def split(tokenizer, context, continuation):
    asked = requests.Loglikelihood(context=context, continuation=continuation)
    ((before, after),) = likelihood_tokens.pairs(tokenizer, [asked])
    names = tokenizer.tokenizer.id_to_token
    return " ".join(map(names, before)), " ".join(map(names, after))


SPLITS = [
    ("Q:", " yes", "Q :", "Ġyes"),
    # Blanks between the two belong to the continuation.
    ("Q: ", "yes", "Q :", "Ġyes"),
    ("Q:  ", "yes", "Q :", "Ġ Ġyes"),
    ("Q:", "yes", "Q :", "y e s"),
    ("a\n", "b", "a", "Ċb"),
    ("a \n", "b", "a", "Ġ Ċb"),
    ("a\u3000", "b", "a", "ã Ģ Ģ b"),
    # Blanks before the context's first letter stay.
    (" a", " yes", "Ġ a", "Ġyes"),
    # A token over the border is no longer the context's, and what follows is counted from where
    # the context alone ends.
    ("xab", "cd", "x ab", "d"),
    ("é", "本", "Ã ©", "æ ľ ¬"),
    # Nothing before it.
    ("", "yes", "<s>", "y e s"),
    ("", " yes", "<s>", "Ġyes"),
    ("", "<s>yes", "<s>", "y e s"),
    ("<s>Q", "a", "<s> Q", "a"),
]


@pytest.mark.parametrize(("context", "continuation", "before", "after"), SPLITS)
def test_where_a_continuation_begins(context, continuation, before, after):
    assert split(opened(), context, continuation) == (before, after)
    # With a template that puts <s> before a text, it is there once.
    if context and not context.startswith("<s>"):
        before = f"<s> {before}"
    assert split(opened(template=True), context, continuation) == (before, after)
    assert split(opened(begins="bos"), context, continuation) == (before, after)


def test_begins_bare_leaves_the_template_out():
    assert split(opened(template=True, begins="bare"), "Q:", " yes") == ("Q :", "Ġyes")
    with pytest.raises(ValueError, match="allowed: as_it_says, bos, bare"):
        opened(begins="never")


def test_many_at_once_are_each_by_itself():
    tokenizer = opened(template=True)
    asked = [requests.Loglikelihood(context=c, continuation=more) for c, more, _, _ in SPLITS]
    together = likelihood_tokens.pairs(tokenizer, [*asked, *asked[::-1]])
    alone = [likelihood_tokens.pairs(tokenizer, [one])[0] for one in asked]
    assert together == [*alone, *alone[::-1]]


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [
        ("xab", "c", "adds no token to its context"),
        ("", "<s>", "adds no token"),
        (" \n", "a", "has no token"),
    ],
)
def test_what_lm_eval_fails_at_is_refused(context, continuation, message):
    with pytest.raises(ValueError, match=message):
        split(opened(), context, continuation)


def test_windows_hold_each_token_once():
    tokenizer = opened()
    found = list(likelihood_tokens.windows(tokenizer, "ABCDEFGHIJ", 4))
    names = tokenizer.tokenizer.id_to_token
    assert [["".join(map(names, part)) for part in pair] for pair in found] == [
        ["<s>", "ABCD"],
        ["D", "EFGH"],
        ["FGH", "IJ"],
    ]
    (short,) = likelihood_tokens.windows(tokenizer, "AB", 4)
    assert ["".join(map(names, part)) for part in short] == ["<s>", "AB"]
    assert list(likelihood_tokens.windows(tokenizer, "", 4)) == []


def test_long_texts_lose_their_beginning():
    found, cut = likelihood_tokens.text([1, 2, 3, 4], [5, 6], 3, longest=None)
    assert (found.ids.tolist(), found.targets.tolist(), cut) == ([3, 4, 5], [5, 6], 2)
    # The last token is not read, so one more than the context's fits.
    found, cut = likelihood_tokens.text([1, 2], [5, 6], 3, longest=None)
    assert (found.ids.tolist(), cut, found.is_apart) == ([1, 2, 5], 0, False)
    assert likelihood_tokens.text([1, 2], [5, 6], 3, longest=2)[0].is_apart
    with pytest.raises(ValueError, match="4 tokens does not fit the model's context of 3"):
        likelihood_tokens.text([1], [5, 6, 7, 8], 3, longest=None)


def test_a_folder_says_what_stands_before(tmp_path):
    tokenizer = byte_pairs.make(*MERGED)
    end = tokenizer.token_to_id("</s>")
    both = byte_pairs.save(tmp_path / "both", tokenizer, bos_token="<s>", eos_token="</s>")
    only_eos = byte_pairs.save(tmp_path / "eos", tokenizer, eos_token="</s>")
    assert likelihood_tokens.open_folder(both).prefix_id == 0
    found = likelihood_tokens.open_folder(only_eos)
    assert found.prefix_id == end
    assert split(found, "", "</s>b") == ("</s>", "b")  # special tokens are read as such
    none = byte_pairs.save(tmp_path / "none", tokenizer)
    with pytest.raises(ValueError, match="neither bos_token nor eos_token"):
        likelihood_tokens.open_folder(none)


def test_ids_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = byte_pairs.make(*MERGED, template=True)
    folder = byte_pairs.save(
        tmp_path, tokenizer, bos_token="<s>", tokenizer_class="PreTrainedTokenizerFast"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = likelihood_tokens.open_folder(folder)
    texts = ["Q: yes", "<s>abc", " \u3000é本", "abc</s>\n", ""]
    for text, ids in zip(texts, ours.encode(texts), strict=True):
        assert ids == theirs.encode(text, add_special_tokens=not text.startswith("<s>"))
    assert ours.bare(["abc"]) == [theirs.encode("abc", add_special_tokens=False)]
