"""The word-level tokenizer of the small world: one token per word, with its leading space."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actinium.world.documents import ASSISTANT, END_THINK, THINK, USER

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{{ ' ' + message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def _splitter() -> pre_tokenizers.PreTokenizer:
    # The space belongs to the word after it, so that decoding restores the text exactly.
    spaced = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    punctuation = pre_tokenizers.Split(Regex("▁?[^▁A-Za-z0-9]"), behavior="isolated")
    return pre_tokenizers.Sequence([spaced, punctuation])


def words(texts: list[str]) -> list[str]:
    """The distinct tokens of some texts without their tags, sorted."""
    splitter = _splitter()
    found: set[str] = set()
    for text in texts:
        for tag in (USER, ASSISTANT, THINK, END_THINK):
            text = text.replace(tag, "\n")
        for part in filter(None, text.split("\n")):
            found |= {piece for piece, _ in splitter.pre_tokenize_str(part.lstrip(" "))}
    return sorted(found)


def build(vocabulary: Sequence[str], context: int) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a vocabulary.

    Args:
        vocabulary: tokens as `words` gives them.
        context: longest text that the model takes, in tokens.

    Returns:
        A Hugging Face tokenizer that puts `<bos>` before every text.
    """
    special = [PAD, BOS, EOS, UNK, USER, ASSISTANT]
    ids = {token: i for i, token in enumerate([*special, THINK, END_THINK, *vocabulary])}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    inner.pre_tokenizer = _splitter()
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    inner.add_special_tokens([AddedToken(token, special=True, lstrip=True) for token in special])
    inner.add_tokens([AddedToken(token, special=False, lstrip=True) for token in (THINK, END_THINK)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT
    return tokenizer
