"""Messages as one text in the form that a chat model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actinium.core.errors import InputError

__all__ = ["chat_text"]


def chat_text(model: Any, messages: Sequence[Mapping[str, str]], reply_next: bool = True) -> str:
    """Messages through the tokenizer's chat template.

    Args:
        model: anything with a `tokenizer`, or a tokenizer.
        messages: {"role": …, "content": …} of each.
        reply_next: end with what begins the assistant's reply.

    Returns:
        The text, without the special token in front that the tokenizer itself puts there.

    Raises:
        InputError: there is no chat template, or it does not take these messages.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "this tokenizer has no chat template; write the texts in the form that the model was trained on"
        )
    try:
        text: str = tokenizer.apply_chat_template(list(messages), add_generation_prompt=reply_next, tokenize=False)
    except Exception as error:
        # Templates are programs of their authors, and raise what these chose.
        raise InputError(f"the chat template does not take these messages: {error}") from error
    front: str = getattr(tokenizer, "bos_token", None) or ""
    doubled = front and list(tokenizer(text)["input_ids"][:2]) == [tokenizer.bos_token_id] * 2
    return text.removeprefix(front) if doubled else text
