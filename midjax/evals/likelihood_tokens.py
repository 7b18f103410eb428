# SPDX-License-Identifier: Apache-2.0
"""Requests for likelihoods -> token ids, by the rules of lm-evaluation-harness's model `hf`.

    Loglikelihood --`pair`--> ids of context and continuation --`text`--> what the model reads
    Rolling     --`windows`--> the same, several               --`text`--> ...

Equal ids are what makes numbers comparable; so the rules are kept where others would do, too.
(lm_eval 0.4.13: `TemplateLM.loglikelihood`, `_encode_pair`, `HFLM.tok_encode`,
`HFLM._loglikelihood_tokens`, `utils.get_rolling_token_windows`.)
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers

from midjax import files
from midjax.batches import encoders
from midjax.evals import likelihood_plan, requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Texts -> ids.

    Attributes:
      tokenizer: reads special tokens in a text as such, as transformers' tokenizers do.
      prefix_id: stands before a text that has nothing before it: BOS, or EOS where there is none.
      begins: what a text gets that does not begin with the prefix token: "as_it_says", what the
        tokenizer's own template adds; "bos", the prefix token; "bare", nothing.
    """

    tokenizer: tokenizers.Tokenizer
    prefix_id: int
    begins: str = "as_it_says"

    def __post_init__(self) -> None:
        if self.begins not in ("as_it_says", "bos", "bare"):
            raise ValueError(
                f"Tokenizer.begins is {self.begins!r}; allowed: as_it_says, bos, bare."
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, with what they begin with."""
        prefix = self.tokenizer.decode([self.prefix_id], skip_special_tokens=False)
        begun = [bool(prefix) and text.startswith(prefix) for text in texts]
        found: list[list[int]] = [[] for _ in texts]
        for has in (False, True):
            numbers = [number for number, one in enumerate(begun) if one == has]
            some = [texts[number] for number in numbers]
            adds = self.begins == "as_it_says" and not has
            for number, ids in zip(numbers, self.bare(some, adds=adds), strict=True):
                if self.begins == "bos" and not has:
                    ids = [self.prefix_id, *ids]
                found[number] = ids
        return found

    def bare(self, texts: Sequence[str], *, adds: bool = False) -> list[list[int]]:
        """Ids of texts; `adds` what the tokenizer's template does."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=adds)
        return [one.ids for one in encoded]


def open_folder(folder: str, *, begins: str = "as_it_says") -> Tokenizer:
    """The tokenizer of a folder, with `tokenizer.json` and, beside it, `tokenizer_config.json`.

    Raises:
      FileNotFoundError: no tokenizer there.
      ValueError: it has neither BOS nor EOS, so that nothing can stand before a text.
    """
    opened = encoders.Fast(folder, None, None)
    tokenizer = tokenizers.Tokenizer.from_str(opened.tokenizer.to_str())
    tokenizer.encode_special_tokens = False
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings = encoders.chat_settings(files.path(folder))
    for name in ("bos_token", "eos_token"):
        token = settings[name]
        if token is not None and (found := tokenizer.token_to_id(token)) is not None:
            return Tokenizer(tokenizer=tokenizer, prefix_id=found, begins=begins)
    raise ValueError(
        f"The tokenizer in {folder!r} has neither bos_token nor eos_token: nothing can stand "
        "before the first token of a text. Name one in its tokenizer_config.json."
    )


def eos_ids(folder: str) -> tuple[int, ...]:
    """What ends a text that is written: `generation_config.json` says it, else `config.json`, else
    the tokenizer; none of them is no id."""
    place = files.path(folder)
    for name in ("generation_config.json", "config.json"):
        if (place / name).exists():
            found = files.read_json(place / name).get("eos_token_id")
            if found is not None:
                return tuple(found) if isinstance(found, list) else (found,)
    token = encoders.chat_settings(place)["eos_token"]
    tokenizer = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    found = None if token is None else tokenizer.token_to_id(token)
    return () if found is None else (found,)


def pairs(
    tokenizer: Tokenizer, asked: Sequence[requests.Loglikelihood]
) -> list[tuple[list[int], list[int]]]:
    """Ids of context and continuation.

    Context and continuation are encoded as one text and divided where the context alone would end;
    blanks at the context's end belong to the continuation. An empty context is the prefix token,
    unless the continuation begins with it: then that is its context.

    Raises:
      ValueError: a continuation without a token of its own.
    """
    moved = [_moved(one) for one in asked]
    # Choices share their context, and the context's ids are needed by themselves.
    contexts = list(dict.fromkeys(context for context, _ in moved if context is not None))
    ids_of = dict(zip(contexts, tokenizer.encode(contexts), strict=True))
    wholes = iter(tokenizer.encode([c + more for c, more in moved if c is not None]))
    alone = iter(tokenizer.bare([more for c, more in moved if c is None]))
    found = []
    for request, (context, _) in zip(asked, moved, strict=True):
        if context is not None:
            before = ids_of[context]
            after = next(wholes)[len(before) :]
        else:
            before, after = [tokenizer.prefix_id], next(alone)
            if after[:1] == before:
                after = after[1:]
        if not before:
            raise ValueError(
                f"The context {request.context!r} has no token. Give an empty one, and put the "
                "blanks into the continuation."
            )
        if not after:
            raise ValueError(
                f"The continuation {request.continuation!r} after {request.context[-40:]!r} adds "
                "no token to its context. Ask for one that does."
            )
        found.append((before, after))
    return found


def _moved(one: requests.Loglikelihood) -> tuple[str | None, str]:
    """(context, continuation) with the blanks between them in the latter; None: no context."""
    if not one.context:
        return None, one.continuation
    kept = one.context.rstrip()
    return kept, one.context[len(kept) :] + one.continuation


def windows(
    tokenizer: Tokenizer, text: str, context_tokens: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(context, continuation) of a text's windows: each token is a continuation's just once.

    The first window begins with the prefix token. The others hold `context_tokens` tokens, as many
    of them from before the window's own as there is room for, but one at least.
    """
    (ids,) = tokenizer.encode([text])
    done = min(context_tokens, len(ids))
    if ids:
        yield [tokenizer.prefix_id], ids[:done]
    while done < len(ids):
        end = min(done + context_tokens, len(ids))
        yield ids[end - context_tokens - 1 : done], ids[done:end]
        done = end


def text(
    context: Sequence[int], continuation: Sequence[int], context_tokens: int, *, longest: int | None
) -> tuple[likelihood_plan.Text, int]:
    """What the model reads, and how many tokens were cut off at the left.

    The last token is read by nobody; of the others the last `context_tokens` are kept.

    Args:
      context, continuation: ids.
      context_tokens: of the model.
      longest: texts beyond so many tokens are apart; None for no such bound.

    Raises:
      ValueError: the continuation does not fit.
    """
    if len(continuation) > context_tokens:
        raise ValueError(
            f"A continuation of {len(continuation)} tokens does not fit the model's context of "
            f"{context_tokens}. Ask for its likelihood as a Rolling text."
        )
    whole = [*context, *continuation]
    cut = max(len(whole) - context_tokens - 1, 0)
    ids = np.array(whole[cut:-1], np.int32)
    is_apart = longest is not None and len(ids) > longest
    targets = np.array(continuation, np.int32)
    return likelihood_plan.Text(ids=ids, targets=targets, is_apart=is_apart), cut
