# SPDX-License-Identifier: Apache-2.0
"""A model that answers all that tasks ask, tokenized as lm-evaluation-harness does it.

loglikelihoods, rolling --likelihood-->  Likelihood
generate                --batcher----->  texts
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from midjax import log
from midjax.evals import batcher, generate, likelihood, likelihood_tokens, requests, sampling
from midjax.model import architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A `requests.Engine` on the mesh where the params lie; there is no second copy of them.

    Attributes:
      scorer: the model, and how likely texts are to it.
      eos_ids: any of them ends a continuation.
      batch_rows: continuations that are written at once.
    """

    scorer: likelihood.Scorer
    eos_ids: tuple[int, ...]
    batch_rows: int = 32

    def loglikelihoods(self, asked: Sequence[requests.Loglikelihood]) -> list[requests.Likelihood]:
        """See `likelihood.Scorer.loglikelihoods`."""
        return self.scorer.loglikelihoods(asked)

    def rolling(self, asked: Sequence[requests.Rolling]) -> list[requests.Likelihood]:
        """See `likelihood.Scorer.rolling`."""
        return self.scorer.rolling(asked)

    def generate(self, asked: Sequence[requests.Generate]) -> list[tuple[str, ...]]:
        """For each request its `samples` continuations, without what stopped them.

        A context that does not fit together with what may follow loses its beginning; that is
        counted as in `Scorer.counts`, and so are continuations that had not ended after the most
        tokens that they may have.

        Raises:
          ValueError: a context without a token, or no room for one. Nothing has been computed then.
        """
        tokenizer, config = self.scorer.tokenizer, self.scorer.config
        prompts = self._prompts(asked)
        texts, wanted = [], []
        for request, prompt in zip(asked, prompts, strict=True):
            text = generate.Continuation(tokenizer.tokenizer, prompt, request.stop)
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
            self.scorer.between()
            return {number for number, new in grown.items() if texts[number].has_stopped(new)}

        model = batcher.Model(
            config=config,
            params=self.scorer.params,
            vocab_size=tokenizer.tokenizer.get_vocab_size(),
            eos_ids=self.eos_ids,
            jax_mesh=self.scorer.jax_mesh,
            batch_rows=self.batch_rows,
        )
        found = batcher.continuations(model, wanted, ended)
        self.scorer.counts["texts cut"] += sum(
            len(new) == one.max_new_tokens and not text.has_stopped(new)
            for one, text, new in zip(wanted, texts, found, strict=True)
        )
        answers = (text.cut(new) for text, new in zip(texts, found, strict=True))
        return [tuple(next(answers) for _ in range(request.samples)) for request in asked]

    def _prompts(self, asked: Sequence[requests.Generate]) -> list[list[int]]:
        """Token ids, as lm_eval's `HFLM.generate_until` cuts them."""
        context_tokens = self.scorer.context_tokens or self.scorer.config.context_tokens
        found, cuts = [], []
        encoded = self.scorer.tokenizer.encode([one.context for one in asked])
        for request, ids in zip(asked, encoded, strict=True):
            room = context_tokens - request.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"max_new_tokens={request.max_new_tokens} leaves no room for a prompt in the "
                    f"model's context of {context_tokens}. Ask for fewer."
                )
            ids = ids or [self.scorer.tokenizer.prefix_id]
            cuts.append(max(len(ids) - room, 0))
            found.append(ids[-room:])
        self.scorer.counts["cut requests"] += sum(cut > 0 for cut in cuts)
        self.scorer.counts["cut tokens"] += sum(cuts)
        if any(cuts):
            log.say(
                f"generate: {sum(cut > 0 for cut in cuts)} of {len(asked)} prompts do not fit the "
                f"context of {context_tokens} tokens with what may follow: {sum(cuts)} tokens are "
                "cut off where they begin."
            )
        return found


def of_model(
    config: architecture.TransformerConfig,
    params: Any,
    tokenizer: likelihood_tokens.Tokenizer,
    eos_ids: tuple[int, ...],
    jax_mesh: jax.sharding.Mesh | None,
    *,
    batch_rows: int,
    **scorer: Any,
) -> Engine:
    """An engine on the params where they lie.

    Args:
      scorer: further fields of `likelihood.Scorer`.
    """
    mesh = jax_mesh if jax_mesh is not None and jax_mesh.size > 1 else None
    asked = likelihood.Scorer(
        config=config, params=params, tokenizer=tokenizer, jax_mesh=mesh, **scorer
    )
    return Engine(scorer=asked, eos_ids=eos_ids, batch_rows=batch_rows)
