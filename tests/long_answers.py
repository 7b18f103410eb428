# SPDX-License-Identifier: Apache-2.0
"""Readers of long tasks who know their rules, but not their generator; two tokenizers; a source.

`Oracle` reads the prompt and answers right; `Guesser` takes candidates of the right form at random.
"""

import collections
import gzip
import importlib.resources
import json
import random
import re
import string

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from midjax.batches import shards
from midjax.evals import likelihood_tokens, requests


def texts():
    """Chapters of novels."""
    package = importlib.resources.files("midjax.demo_data")
    lines = gzip.decompress((package / "prose.heldout.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line)["text"] for line in lines]


def byte_level():
    """Of the demo: BPE of bytes, numbers digit by digit or in one piece, <s> and </s>."""
    package = importlib.resources.files("midjax.demo_data")
    found = tokenizers.Tokenizer.from_str((package / "tokenizer/tokenizer.json").read_text())
    names = [token.content for token in found.get_added_tokens_decoder().values()]
    return likelihood_tokens.Tokenizer(
        tokenizer=found, prefix_id=found.token_to_id(names[0]), begins="bos"
    )


def sentence_pieces():
    """As SentencePiece's: blanks are marks within tokens, pieces are chosen by their likelihood."""
    found = tokenizers.Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    found.train_from_iterator(texts()[:3], trainer)
    return likelihood_tokens.Tokenizer(tokenizer=found, prefix_id=0, begins="bos")


def source(folder, tokenizer, documents):
    """A token folder of these texts."""
    made = []
    for number, text in enumerate(documents):
        ids = [tokenizer.prefix_id, *tokenizer.bare([text])[0]]
        made.append((str(number), len(text.encode()), np.array(ids)))
    size = tokenizer.tokenizer.get_vocab_size()
    facts = {"tokenizer_hash": "t", "vocab_size": size, "bos_id": tokenizer.prefix_id}
    shards.write(str(folder), made, facts=facts | {"eos_id": None}, shard_tokens=100_000)
    return shards.TokenSource(str(folder))


def needles(text):
    """key -> values, in the order of the text."""
    found = collections.defaultdict(list)
    for key, value in re.findall(r"magic [a-z]+ for ([a-z0-9-]+) is: ([0-9a-f-]+)\.", text):
        found[key].append(value)
    return found


def asked_keys(text):
    """The keys of the question, and whether one value is wanted."""
    pattern = (
        r"\nWhat (is|are all) the special magic [a-z]+ for (.+) mentioned in the provided text\?"
    )
    verb, keys = re.findall(pattern, text)[-1]
    return re.split(r", and |, ", keys), verb == "is"


def assignments(text):
    """Lines of the last list of variables: (name, what it is set to)."""
    within = text[text.rindex("Memorize and track") :]
    return re.findall(r"VAR ([A-Z]+) = (?:VAR )?([A-Z]+|\d+)", within)


def listed(text):
    """The words of the last numbered list; an entry that is cut off has an end of its own."""
    within = text[text.rindex("Memorize the ones that") : text.rindex("\nQuestion:")]
    return re.findall(r"\d+\. ([^\W\d]+)", within)


def coded(text):
    start = text.index("frequently appeared coded words. ") + len(
        "frequently appeared coded words. "
    )
    words = text[start : text.index("\nQuestion:")].split()
    return [word for word in words if word.isalpha()]


def solved(text):
    """The right answers."""
    if "special magic" in text:
        keys, _ = asked_keys(text)
        known = needles(text)
        return [value for key in keys for value in known[key]]
    if "variable assignment" in text:
        value = re.findall(r"assigned the value (\d+)", text)[-1]
        found = []
        for name, what in assignments(text):  # chains are told in their order
            if what == value or what in found:
                found.append(name)
        return found
    if "numbered list" in text:
        return [word for word, _ in collections.Counter(listed(text)).most_common(10)]
    if "coded text" in text:
        return [word for word, _ in collections.Counter(coded(text)).most_common(3)]
    thing = re.findall(r"Question: Where is the (.+)\? Answer:", text)[-1]
    return re.findall(rf"The {thing} is in ([A-Z][a-z]+)\.", text)


class Oracle:
    """An engine; `seen` are the texts that it was asked to go on with."""

    def __init__(self):
        self.seen = []

    def generate(self, asked):
        self.seen += [one.context for one in asked]
        return [(f" {' '.join(solved(one.context))}.",) for one in asked]

    def loglikelihoods(self, asked):
        found = []
        for one in asked:
            said = one.continuation.split()[-1]
            right = said in solved(one.context)
            found.append(requests.Likelihood(nats=-1.0 if right else -99.0, greedy=right, tokens=1))
        return found


class Guesser:
    """Names as many candidates as are asked for, from those in the text if there are too many."""

    def __init__(self, seed):
        self._random = random.Random(seed)

    def generate(self, asked):
        return [(" ".join(self._guess(one.context)),) for one in asked]

    def loglikelihoods(self, asked):
        return [
            requests.Likelihood(nats=-self._random.random(), greedy=False, tokens=1) for _ in asked
        ]

    def _guess(self, text):
        count = len(solved(text))
        if "special magic" in text:
            here = [value for values in needles(text).values() for value in values]
            new = lambda: str(self._random.randint(10**6, 10**7 - 1))  # noqa: E731
        elif "variable assignment" in text:
            here = [name for name, _ in assignments(text)]
            new = lambda: "".join(self._random.choices(string.ascii_uppercase, k=5))  # noqa: E731
        else:
            here, new = sorted(set(listed(text) if "numbered list" in text else coded(text))), None
        if len(here) > count:
            return self._random.sample(here, count)
        return [new() for _ in range(count)]
