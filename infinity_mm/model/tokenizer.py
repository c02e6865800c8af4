"""Train a byte-level BPE tokenizer with the model's special tokens and a ChatML template."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infinity_mm.model.schema import SchemaTokens

END_OF_TEXT = "<|endoftext|>"
"""Ends a document that is not a chat."""
IM_START = "<|im_start|>"
"""Starts a chat message."""
IM_END = "<|im_end|>"
"""Ends a chat message; the end-of-sequence token."""
PAD = "<|pad|>"
"""Fills rows of a batch."""

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}{%- else -%}AFTER_IMAGE{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
_NEWLINE = """\
{%- if part['text'] and not loop.first and loop.previtem['type'] == 'image' -%}{{- '\\n' -}}{%- endif -%}"""


def chat_template(image_token: str, *, newline: bool) -> str:
    """ChatML; content is a string or typed parts; the assistant's words and end marker are the trained span.

    `newline`: write one between an image and the text after it.
    """
    template = _CHAT_TEMPLATE.replace("AFTER_IMAGE", _NEWLINE if newline else "")
    return template.replace("IMAGE", image_token)


CHAT_TEMPLATE = chat_template(SchemaTokens().image, newline=False)
"""Of the models that we make."""

_SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Each digit alone, words and symbols with one leading space."""


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn `vocab_size` tokens (special tokens and all 256 bytes included) from `texts`.

    All bytes are in the vocabulary, so every text comes back from `decode(encode(text))`.
    """
    tokens = SchemaTokens()
    special = [END_OF_TEXT, IM_START, IM_END, PAD, *tokens.all]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=IM_END,
        pad_token=PAD,
        additional_special_tokens=[END_OF_TEXT, IM_START, *tokens.all],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
