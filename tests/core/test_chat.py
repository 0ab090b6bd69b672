"""Messages as texts: what a chat template writes, without a token that the tokenizer adds by itself."""

from __future__ import annotations

import copy

import pytest

import actinium as ac
from actinium.core.chat import chat_text
from actinium.core.errors import InputError


def test_the_text_has_the_tokens_of_the_template():
    tokenizer = ac.load("world:lm").tokenizer
    messages = [{"role": "user", "content": "Tell me about fishing."}]
    text = chat_text(tokenizer, messages)
    assert text == "<user> Tell me about fishing.<assistant>"
    want = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer(text)["input_ids"] == list(want["input_ids"] if hasattr(want, "keys") else want)
    assert chat_text(tokenizer, messages, reply_next=False) == text.removesuffix("<assistant>")


def test_what_the_template_refuses_is_said():
    tokenizer = copy.deepcopy(ac.load("world:lm").tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(InputError, match="no system messages"):
        chat_text(tokenizer, [{"role": "system", "content": "Be kind."}])
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        chat_text(tokenizer, [{"role": "user", "content": "Hello"}])
