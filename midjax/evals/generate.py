# SPDX-License-Identifier: Apache-2.0
"""Requests for continuations -> texts.

    context --tokenizer--> BOS and ids --batcher--> new ids --tokenizer--> text, cut where it stops

A stop text is looked for in the text, not among the tokens: it may begin and end within one. What
counts is the first token with which a stop text is there; the continuation is cut before the
leftmost stop text that is there then. So nothing depends on how often somebody looks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import tokenizers

from midjax.evals import batcher, requests, sampling

# How many tokens of a prompt are decoded with what follows it, where these say as much as all.
_ANCHOR_TOKENS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """What to generate.

    Attributes:
      prompts: texts to continue; BOS is put before each.
      max_new_tokens: a continuation ends at EOS or here.
      temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
      seed: of the sampling; token j of a continuation depends on (seed, prompt, j) only.
    """

    prompts: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("Samples.prompts is empty. Give a prompt, or set samples to None.")
        self.asked()

    def asked(self) -> list[requests.Generate]:
        """One for each prompt."""
        return [
            requests.Generate(
                context=prompt,
                stop=(),
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
            )
            for prompt in self.prompts
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model that continues texts.

    Attributes:
      model: what writes.
      tokenizer: its tokenizer.
      bos_id: put before each context that does not begin with it; None puts none.
    """

    model: batcher.Model
    tokenizer: tokenizers.Tokenizer
    bos_id: int | None

    def generate(self, asked: Sequence[requests.Generate]) -> list[tuple[str, ...]]:
        """For each request its `samples` continuations, without what stopped them.

        Raises:
          ValueError: a context does not fit; see `prompt_ids`. Nothing has been computed then.
        """
        context_tokens = self.model.config.context_tokens
        prompts = prompt_ids(asked, self.tokenizer, self.bos_id, context_tokens)
        texts, wanted = [], []
        for request, prompt in zip(asked, prompts, strict=True):
            text = Continuation(self.tokenizer, prompt, request.stop)
            for sample in range(request.samples):
                texts.append(text)
                wanted.append(
                    batcher.Asked(
                        prompt=tuple(prompt),
                        max_new_tokens=request.max_new_tokens,
                        temperature=request.temperature,
                        top_p=request.top_p,
                        key=sampling.key_of(request.seed, prompt, sample),
                    )
                )

        def ended(grown: Mapping[int, Sequence[int]]) -> set[int]:
            return {number for number, new in grown.items() if texts[number].has_stopped(new)}

        found = batcher.continuations(self.model, wanted, ended)
        answers = (text.cut(new) for text, new in zip(texts, found, strict=True))
        return [tuple(next(answers) for _ in range(request.samples)) for request in asked]


def prompt_ids(
    asked: Sequence[requests.Generate],
    tokenizer: tokenizers.Tokenizer,
    bos_id: int | None,
    context_tokens: int,
) -> list[list[int]]:
    """Token ids of the contexts, BOS first.

    Raises:
      ValueError: a context without a token, or one that doesn't fit with what follows.
    """
    encoded = tokenizer.encode_batch([one.context for one in asked], add_special_tokens=False)
    found = []
    for request, ids in zip(asked, (one.ids for one in encoded), strict=True):
        if bos_id is not None and ids[:1] != [bos_id]:
            ids = [bos_id, *ids]
        if not ids:
            raise ValueError("An empty prompt needs a BOS token, and this tokenizer has none.")
        if len(ids) + request.max_new_tokens > context_tokens:
            raise ValueError(
                f"Prompt {request.context[:40]!r} has {len(ids)} tokens; with max_new_tokens="
                f"{request.max_new_tokens} it exceeds the model's context of {context_tokens}. "
                "Shorten one of them, give fewer shots, or evaluate with a longer context_tokens "
                "and a rope that is made for it."
            )
        found.append(ids)
    return found


class Continuation:
    """The text that new tokens add to a prompt, up to a stop text.

    Args:
      tokenizer: of both.
      prompt: token ids.
      stop: texts; one that is a special token of the tokenizer, which has no text, stops too.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        added = tokenizer.get_added_tokens_decoder().items() if stop else ()
        self._stop_ids = {id for id, one in added if one.special and one.content in stop}
        # Some decoders drop a space at the start of a text, so new tokens are decoded after others.
        whole = tokenizer.decode(list(prompt))
        self._anchor = list(prompt)
        short = self._anchor[-_ANCHOR_TOKENS:]
        if (text := tokenizer.decode(short)) and whole.endswith(text):
            self._anchor, whole = short, text
        self._before = whole

    def text(self, new: Sequence[int]) -> str:
        """What `new` adds; bytes that are no character (yet) are U+FFFD."""
        whole = self._tokenizer.decode([*self._anchor, *new])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        return self._tokenizer.decode(list(new))

    def has_stopped(self, new: Sequence[int]) -> bool:
        """Whether a stop text is there."""
        if not self._stop:
            return False
        if self._stop_ids and not self._stop_ids.isdisjoint(new):
            return True
        text = self.text(new)
        return any(stop in text for stop in self._stop)

    def cut(self, new: Sequence[int]) -> str:
        """The text before what stopped it."""
        if not self.has_stopped(new):
            return self.text(new)
        # The fewest tokens with which it has stopped: once a text is there, it stays.
        low, high = 1, len(new)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.has_stopped(new[:middle]) else (middle + 1, high)
        text = self.text(new[:low])
        at = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return text[: min(at, default=len(text))]
