# SPDX-License-Identifier: Apache-2.0
"""Conversations -> text by the tokenizer's chat template, with loss on answers or on all."""

import dataclasses
import datetime
import re
from collections.abc import Mapping
from typing import Any, Literal

from midjax.corpora import formats, templates

ANSWERER = "assistant"
# Under these names messages carry reasoning; templates read the first, or that of gpt-oss.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """A list of messages, rendered by the chat template of the tokenizer.

    The template decides where loss is, if it has `{% generation %}` blocks: exactly on the
    characters that transformers' `apply_chat_template(return_assistant_tokens_mask=True)` marks.
    For another template each answer is found by rendering the conversation up to it (with
    the generation prompt) and up to its end; white space after a special token that ends the answer
    (ChatML's line end after <|im_end|>) bears no loss. Where the first is not the beginning of the
    second and of the whole, as in templates that leave out the reasoning of earlier turns, the
    record is dropped and counted.

    Content in parts is joined where all of them are text; other parts, and an answer without any
    content, drop the record. So does a message whose own text holds a special token's string: it
    would end its turn, or begin another, in the tokens.

    Attributes:
      messages_field: field with the list of messages.
      loss: "answers": on what the assistant says; "all": on all of the text.
      role_key, content_key: keys of a message. Other keys (`tool_calls`, `reasoning_content`)
        reach the template under their own names.
      roles: the data's names of roles -> the template's, such as {"human": "user", "gpt":
        "assistant"}; a role that is not among them stays as it is.
      date: YYYY-MM-DD, for templates that write the current date (Llama 3.1 and later).
    """

    messages_field: str
    loss: Literal["answers", "all"]
    role_key: str = "role"
    content_key: str = "content"
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"Chat.date must be YYYY-MM-DD, got {self.date!r}.") from error

    def fields(self) -> frozenset[str]:
        """Fields that the text is made of."""
        return frozenset([self.messages_field])

    def open(self, facts: formats.TokenizerFacts) -> formats.Render:
        """The function from a record to its text.

        Raises:
          ValueError: the tokenizer has no chat template, or one that is not Jinja or needs a date.
        """
        if facts.chat_template is None:
            raise ValueError(
                "Chat needs the tokenizer's chat template, and this tokenizer has none. A base "
                "model's tokenizer often has none: use the one of its instruct version, or the "
                "format Template or QuestionAnswer."
            )
        date = None if self.date is None else datetime.date.fromisoformat(self.date)
        script = templates.Script(
            facts.chat_template, "The chat template (see Chat.date)", strict=False, date=date
        )
        return _Renderer(self, facts, script)


class _Renderer:
    def __init__(self, chat: Chat, facts: formats.TokenizerFacts, script: templates.Script) -> None:
        self._chat, self._script = chat, script
        self._given = {
            name: token
            for name, token in (("bos_token", facts.bos_token), ("eos_token", facts.eos_token))
            if token is not None
        }
        longest_first = sorted(facts.special_tokens, key=lambda token: (-len(token), token))
        some = "|".join(map(re.escape, longest_first)) or "(?!)"  # which never matches
        self._special = re.compile(some)
        self._end_of_turn = re.compile(f"({some})\\s+\\Z")

    def __call__(self, record: Mapping[str, Any], key: str) -> formats.Rendered:
        messages = self._messages(record)
        text, spans = self._render(messages)
        if self._chat.loss == "all":
            return formats.Rendered(text=text, special=True)
        if not self._script.marks:
            spans = self._answers(messages, text)
        if not spans:
            raise formats.Drop("no answer in the conversation")
        return formats.Rendered(text=text, loss=spans, special=True)

    def _messages(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        chat = self._chat
        given = formats.decoded(record.get(chat.messages_field))
        if not isinstance(given, list) or not given:
            raise formats.Drop(f"no list of messages in field {chat.messages_field!r}")
        messages = []
        for message in given:
            if not isinstance(message, Mapping):
                raise formats.Drop("a message is not an object")
            # As transformers does: null is absent. Columns of Parquet have null for every key that
            # only other messages have.
            made = {name: value for name, value in message.items() if value is not None}
            role, content = made.pop(chat.role_key, None), made.pop(chat.content_key, None)
            if not isinstance(role, str):
                raise formats.Drop(f"a message without a string {chat.role_key!r}")
            made = {"role": chat.roles.get(role, role)} | made
            if content is not None:
                made["content"] = _text(content)
            if made == {"role": ANSWERER} or made == {"role": ANSWERER, "content": ""}:
                raise formats.Drop("an answer without content")
            if found := next(filter(None, map(self._special.search, _strings(made))), None):
                raise formats.Drop(f"a message holds the special token {found[0]!r}")
            reasoning = next((made[name] for name in _REASONING if name in made), None)
            if reasoning is not None:
                made = {"thinking": reasoning, **made, "reasoning_content": reasoning}
            messages.append(made)
        return messages

    def _render(
        self, messages: list[dict[str, Any]], prompt: bool = False
    ) -> tuple[str, templates.Spans]:
        context = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
            **self._given,
        }
        try:
            return self._script.render(context)
        except templates.RENDER_ERRORS as error:
            raise formats.Drop("refused by the chat template", str(error)) from None

    def _answers(self, messages: list[dict[str, Any]], text: str) -> templates.Spans:
        """Where each answer is, from renderings of what comes before it and of it."""
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] != ANSWERER:
                continue
            before, _ = self._render(messages[:number], prompt=True)
            until, _ = self._render(messages[: number + 1])
            if not (text.startswith(until) and until.startswith(before)):
                raise formats.Drop("the chat template renders a turn differently in its place")
            if blanks := self._end_of_turn.search(until, len(before)):
                until = until[: blanks.end(1)]
            if len(before) == len(until):
                continue
            if spans and len(before) <= spans[-1][1]:  # two answers in a row
                spans[-1] = (spans[-1][0], len(until))
            else:
                spans.append((len(before), len(until)))
        return tuple(spans)


def _text(content: Any) -> str:
    """The text of a message, which may be given in parts: few templates can tell them from text."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [{}]:
        known = part if isinstance(part, Mapping) else {}
        text = known.get("text")
        if not isinstance(text, str) or known.get("type") != "text":
            raise formats.Drop("a message's content is neither text nor parts of text")
        texts.append(text)
    return "".join(texts)


def _strings(value: Any) -> list[str]:
    """Every string of a message, its keys left out."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []
