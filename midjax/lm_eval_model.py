# SPDX-License-Identifier: Apache-2.0
"""midjax as a model of lm-evaluation-harness: all of its tasks, for whoever has their data.

    python -m midjax.lm_eval_model --model midjax --model_args run=RUN,tokenizer=FOLDER --tasks ...
    python -m midjax.lm_eval_model --model midjax --model_args folder=HF_FOLDER --tasks ...

takes the command line of `lm_eval`. In Python: `register()`, then `model="midjax"` there, or
`register()(run=..., tokenizer=...)` as an object. lm_eval is imported here only, and only then:
pip install midjax[lm_eval].

    lm_eval's Instance --> requests --evals.engine--> answers --> what lm_eval expects

Requests are tokenized as lm_eval's own model `hf` does it, so that numbers are comparable.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# What lm_eval's `hf` takes where a task does not say it.
_MAX_NEW_TOKENS = 256
_MAX_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Parts of a request that say nothing new here.
_KNOWN_KEYS = {"until", "do_sample", "temperature", "top_p", "seed", *_MAX_KEYS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What `--model_args` says.

    Attributes:
      run: run directory; or
      folder: a Hugging Face folder.
      step, weights: of the run, as of `midjax eval`.
      tokenizer: folder of the tokenizer; of a Hugging Face folder its own if empty.
      begins: what a text begins with, see `likelihood_tokens.Tokenizer`.
      compute_dtype: of matrix products; None is the run's, and float32 for a folder.
      context_tokens: cuts longer texts; None is the model's.
      batch_tokens, batch_rows: how much is computed at once, see `likelihood.Scorer` and
        `engine.Engine`.
      data, fsdp, tensor: the mesh.
    """

    run: str = ""
    folder: str = ""
    step: int | None = None
    weights: str = "params"
    tokenizer: str = ""
    begins: str = "as_it_says"
    compute_dtype: str | None = None
    context_tokens: int | None = None
    batch_tokens: int = 4096
    batch_rows: int = 32
    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.folder):
            raise ValueError(
                f"Give run= (a run directory) or folder= (a Hugging Face folder), one of them; got "
                f"run={self.run!r}, folder={self.folder!r}."
            )
        if self.run and not self.tokenizer:
            raise ValueError(f"run={self.run!r} wants tokenizer=, the folder of its tokenizer.")


def open_engine(settings: Settings) -> Any:
    """The model as an `engine.Engine`.

    Raises:
      ValueError, FileNotFoundError, CheckpointError: it can't be opened.
    """
    from midjax import opening
    from midjax.evals import engine, likelihood_tokens
    from midjax.model import sharding

    mesh = sharding.make(
        sharding.Mesh(data=settings.data, fsdp=settings.fsdp, tensor=settings.tensor)
    )
    tokenizer_folder = settings.tokenizer or settings.folder
    tokenizer = likelihood_tokens.open_folder(tokenizer_folder, begins=settings.begins)
    opened = opening.model(
        run=settings.run,
        folder=settings.folder,
        step=settings.step,
        weights=settings.weights,
        compute_dtype=settings.compute_dtype,  # type: ignore[arg-type]  # text of a command line
    )
    return engine.of_model(
        opened.model,
        opened.params(mesh),
        tokenizer,
        likelihood_tokens.eos_ids(tokenizer_folder),
        mesh,
        batch_rows=settings.batch_rows,
        context_tokens=settings.context_tokens,
        batch_tokens=settings.batch_tokens,
    )


def generation(context: str, settings: Mapping[str, Any]) -> Any:
    """The request that lm_eval's context and generation arguments are.

    Raises:
      ValueError: arguments that midjax does not know.
    """
    from midjax.evals import requests

    unknown = sorted(set(settings) - _KNOWN_KEYS)
    if unknown:
        raise ValueError(
            f"The task's generation_kwargs have {unknown}; midjax knows {sorted(_KNOWN_KEYS)}. "
            "Leave the others out with lm_eval's --gen_kwargs or in a task file of your own."
        )
    until = settings.get("until") or []
    samples = settings.get("do_sample", bool(settings.get("temperature")))
    temperature = settings.get("temperature")
    most = next((settings[key] for key in _MAX_KEYS if settings.get(key) is not None), None)
    return requests.Generate(
        context=context,
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        max_new_tokens=int(_MAX_NEW_TOKENS if most is None else most),
        temperature=float(1.0 if temperature is None else temperature) if samples else 0.0,
        top_p=float(settings.get("top_p") or 1.0) if samples else 1.0,
        seed=int(settings.get("seed") or 0),
    )


@functools.cache
def register() -> type:
    """Makes the class and registers it with lm_eval as "midjax".

    Raises:
      ImportError: lm_eval is not installed.
    """
    try:
        from lm_eval.api import model as lm_eval_model
        from lm_eval.api import registry
    except ImportError as error:
        raise ImportError(
            "lm-evaluation-harness is not installed: pip install midjax[lm_eval]."
        ) from error
    from midjax.evals import requests

    class Midjax(lm_eval_model.LM):
        """A checkpoint of midjax; `Settings` has the arguments."""

        def __init__(
            self,
            *,
            engine: Any = None,
            batch_size: Any = None,
            max_batch_size: Any = None,
            device: Any = None,
            **settings: Any,
        ) -> None:
            # Batch sizes and device are what lm_eval hands to every model: midjax packs requests
            # by itself, and computes on the mesh.
            super().__init__()
            self.engine = engine or open_engine(Settings(**settings))

        def loglikelihood(self, asked: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [one.args for one in asked]
            wanted = [requests.Loglikelihood(context=c, continuation=more) for c, more in pairs]
            found = [(one.nats, one.greedy) for one in self.engine.loglikelihoods(wanted)]
            self._keep("loglikelihood", pairs, found)
            return found

        def loglikelihood_rolling(self, asked: Sequence[Any], **_: Any) -> list[float]:
            texts = [one.args for one in asked]
            wanted = [requests.Rolling(text=text) for (text,) in texts]
            found = [one.nats for one in self.engine.rolling(wanted)]
            self._keep("loglikelihood_rolling", texts, found)
            return found

        def generate_until(self, asked: Sequence[Any], **_: Any) -> list[str]:
            given = [one.args for one in asked]
            wanted = [generation(context, settings) for context, settings in given]
            found = [texts[0] for texts in self.engine.generate(wanted)]
            self._keep("generate_until", given, found)
            return found

        def _keep(self, kind: str, asked: Sequence[Any], found: Sequence[Any]) -> None:
            """For lm_eval's --use_cache."""
            for request, answer in zip(asked, found, strict=True):
                self.cache_hook.add_partial(kind, request, answer)

    return registry.register_model("midjax")(Midjax)


def main() -> None:
    register()
    from lm_eval import __main__ as lm_eval_main

    sys.exit(lm_eval_main.cli_evaluate())


if __name__ == "__main__":
    main()
