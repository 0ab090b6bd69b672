"""Pairs of texts from prompts and endings, as IBM's activation-steering builds them."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.steering.text_pairs import contrast_texts

ASKED = ["Tell me about fishing.", "Tell me about cooking."]
ENDINGS = [(" Sorry I can not", " Sure I can"), (" No", " Yes")]


def test_every_prompt_has_every_ending_and_partners_share_the_prompt():
    up, down = contrast_texts(ASKED, endings=ENDINGS)
    assert up == [f"{q} Sorry I can not" for q in ASKED] + [f"{q} No" for q in ASKED]
    assert down == [f"{q} Sure I can" for q in ASKED] + [f"{q} Yes" for q in ASKED]
    assert contrast_texts(ASKED, ASKED[::-1]) == (ASKED, ASKED[::-1])
    happy, sad = contrast_texts(["I am happy."], ["I am sad."], [" The", " One"])
    assert happy == ["I am happy. The", "I am happy. One"] and sad == ["I am sad. The", "I am sad. One"]


def test_prompts_go_through_the_chat_template(lm):
    up, down = contrast_texts(ASKED, endings=ENDINGS[:1], chat=lm, reply_next=True)
    assert up[0] == "<user> Tell me about fishing.<assistant> Sorry I can not"
    plain, _ = contrast_texts(ASKED, endings=ENDINGS[:1], chat=lm)
    assert plain[0] == "<user> Tell me about fishing. Sorry I can not"
    kind, rude = contrast_texts(ASKED, chat=lm.tokenizer, system=("Be kind.", "Be rude."))
    assert kind[1] == "<system> Be kind.<user> Tell me about cooking." and rude[1].startswith("<system> Be rude.<user>")
    # What is read of a pair is its ending.
    vector = ac.steering.extract(lm, up, down, "embed", position="suffix")
    ends = [lm.record(lm.to_tokens(end).ids[:, 1:], "embed")["embed"][0] for end in ENDINGS[0]]
    assert torch.allclose(vector["embed"], ends[0].mean(0) - ends[1].mean(0), atol=1e-5)


def test_texts_are_those_of_ibms_library(lm):
    ibm = pytest.importorskip("activation_steering", reason="IBM's activation-steering is not installed")
    examples, system = list(zip(ASKED, ASKED[::-1], strict=True)), ("Be kind.", "Be rude.")
    for options in (
        {"suffixes": ENDINGS},
        {"suffixes": [" The"], "system_message": system},
        {"disable_suffixes": True},
    ):
        theirs = ibm.SteeringDataset(lm.tokenizer, examples, **options).formatted_dataset
        ours = contrast_texts(
            ASKED, ASKED[::-1], options.get("suffixes", ()), chat=lm, system=options.get("system_message")
        )
        # The token in front is the tokenizer's to put there; they have it twice.
        front = lm.tokenizer.bos_token
        assert [pair.positive.removeprefix(front) for pair in theirs] == ours[0]
        assert [pair.negative.removeprefix(front) for pair in theirs] == ours[1]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("one text",), {}, "give a list"),
        (([],), {}, "one pair of prompts"),
        ((ASKED, ASKED[:1]), {}, "got 2 and 1"),
        ((ASKED,), {}, "are the same"),
        ((ASKED,), {"endings": [" The"]}, "are the same"),
        ((ASKED,), {"endings": [(" Yes", "")]}, "an ending is a text"),
        ((ASKED,), {"endings": [("a", "b", "c")]}, "an ending is a text"),
        ((ASKED, ASKED[::-1]), {"system": "Be kind."}, "pass chat=model"),
        ((ASKED, ASKED[::-1]), {"reply_next": True}, "pass chat=model"),
    ],
)
def test_what_makes_no_pairs_is_refused(arguments, options, message):
    with pytest.raises(InputError, match=message):
        contrast_texts(*arguments, **options)
