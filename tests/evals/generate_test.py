# SPDX-License-Identifier: Apache-2.0
"""From requests to texts: what is put before, what stops, and where exactly it is cut."""

import jax
import pytest
import tiny_model
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from midjax.evals import batcher, generate, requests
from midjax.model import transformer


def byte_level(*merged):
    """Bytes, and tokens of several of them; <s> and <|end|> are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", *alphabet])}
    merges = []
    for word in merged:
        for size in range(2, len(word) + 1):
            if word[:size] not in vocab:
                vocab[word[:size]] = len(vocab)
                merges.append((word[: size - 1], word[size - 1]))
    found = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<s>", "<|end|>"])
    return found


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("merged", "stop", "written", "wanted"),
    [
        # Within one token, its head and tail belonging to others.
        (["xQyQz"], ("Q",), "abxQyQzcd", "abx"),
        # Over several tokens.
        (["xyQ", "uesz"], ("Ques",), "abxyQueszcd", "abxy"),
        (["\u010a\u010a"], ("\n\nQ:",), "yes\n\n\nQ: no\n\nQ:", "yes\n"),
        # The first to be whole counts, and of those that are there then the leftmost.
        ([], ("abc", "b"), "xxabcb", "xxa"),
        (["abc"], ("abc", "b"), "xxabcb", "xx"),
        # Characters of several bytes.
        ([], ("é",), "café au lait", "caf"),
        ([], ("本語",), "日本本語日", "日本"),
        ([], ("zz",), "日本", "日本"),
        # At the start.
        ([], ("\n",), "\nabc", ""),
    ],
)
def test_where_a_stop_text_cuts(merged, stop, written, wanted):
    tokenizer = byte_level(*merged)
    prompt, new = ids(tokenizer, "Ünï: Q abc\n"), ids(tokenizer, written)
    text = generate.Continuation(tokenizer, [0, *prompt], stop)
    assert text.cut(new) == wanted
    # However much more was written when somebody looked.
    assert text.cut([*new, *ids(tokenizer, "b Q\n\nQ: é本語")]) == wanted or wanted == written
    stopped = [text.has_stopped(new[:size]) for size in range(len(new) + 1)]
    assert stopped == sorted(stopped) and stopped[-1] == (wanted != written)


def test_a_special_token_stops_too():
    tokenizer = byte_level()
    end = tokenizer.token_to_id("<|end|>")
    text = generate.Continuation(tokenizer, ids(tokenizer, "ab"), ("<|end|>",))
    new = [*ids(tokenizer, "yes"), end, *ids(tokenizer, "no")]
    assert text.cut(new) == "yes" and not text.has_stopped(new[:3])
    assert generate.Continuation(tokenizer, ids(tokenizer, "ab"), ("q",)).cut(new) == "yesno"


def test_half_a_character_is_no_text_yet():
    tokenizer = byte_level()
    text = generate.Continuation(tokenizer, ids(tokenizer, "a"), ("x",))
    new = ids(tokenizer, "é")
    assert text.text(new[:1]) == "\ufffd" and text.text(new) == "é"


@pytest.mark.parametrize("prompt", [[0], [0] * 40])
def test_a_continuation_is_what_it_adds_to_the_prompt(prompt):
    """Metaspace decoders drop the space at the start of a text, so new tokens alone lose it."""
    words = tokenizers.Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1}, unk_token="▁one"))
    words.decoder = decoders.Metaspace()
    assert words.decode([1]) == "two"
    assert generate.Continuation(words, prompt, ()).text([1]) == " two"


def asked(context="a", stop=(), new=6, **kwargs):
    return requests.Generate(context=context, stop=stop, max_new_tokens=new, **kwargs)


def test_prompts_begin_with_one_bos():
    tokenizer = byte_level()
    found = generate.prompt_ids([asked("ab"), asked(""), asked("<s>a")], tokenizer, 0, 64)
    assert [len(i) for i in found] == [3, 1, 2] and all(i[0] == 0 and 0 not in i[1:] for i in found)
    assert tokenizer.decode(found[0][1:]) == "ab"


@pytest.mark.parametrize(
    ("context", "bos", "tokens", "words"),
    [
        ("abcdef", 0, 12, "has 7 tokens; with max_new_tokens=6 it exceeds the model's context of"),
        ("", None, 16, "needs a BOS token"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(context, bos, tokens, words):
    with pytest.raises(ValueError, match=words):
        generate.prompt_ids([asked("a"), asked(context)], byte_level(), bos, tokens)


@pytest.mark.parametrize("changes", [{"prompts": ()}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_bad_fields_are_refused(changes):
    fields = {"prompts": ("a",), "max_new_tokens": 6, "temperature": 0.0, "seed": 5}
    with pytest.raises(ValueError, match=r"got|Give"):
        generate.Samples(**(fields | changes))


def test_answers_by_request():
    """Samples differ, requests don't look at each other, and stop texts cut what is drawn."""
    tokenizer = byte_level()
    config = tiny_model.config(vocab_size=260, layers=1, context_tokens=64)
    params = transformer.init(config, jax.random.key(0))
    sampler = generate.Sampler(
        model=batcher.Model(config=config, params=params, vocab_size=258, eos_ids=(258,)),
        tokenizer=tokenizer,
        bos_id=0,
    )
    drawn = asked("Once", new=12, temperature=1.0, samples=3)
    greedy = asked("A longer prompt", new=5)
    free = sampler.generate([drawn, greedy])
    assert [len(texts) for texts in free] == [3, 1] and len(set(free[0])) == 3
    first = free[0][0]
    stop = next(one for one in first[2:] if one != "\ufffd")
    stopped = asked("Once", (stop,), 12, temperature=1.0, samples=3)
    again = sampler.generate([greedy, stopped])
    assert again[0] == free[1]
    assert again[1] == tuple(text.split(stop)[0] for text in free[0])
    other = asked("Once", new=12, temperature=1.0, samples=3, seed=1)
    assert sampler.generate([other, greedy])[0] != free[0]
