"""A small instruct model as transformers saves one."""

import json
from pathlib import Path

import torch
from support.foreign import SHAPE
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}


def save_instruct(folder: Path, tokenizer: str, **shape) -> None:
    """Save a model with a chat template, and with tokens that begin, end and pad a text.

    Args:
        tokenizer: the content of a tokenizer.json, to which special tokens are added.
        shape: fields of its config other than `SHAPE`.
    """
    tokens = Tokenizer.from_str(tokenizer)
    tokens.add_special_tokens([*SPECIAL.values()])
    begin, end, pad = map(tokens.token_to_id, SPECIAL.values())
    numbers = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad}
    fields = SHAPE | {"vocab_size": tokens.get_vocab_size() + 5} | numbers | shape
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True))
    model.generation_config = GenerationConfig(
        **numbers | {"eos_token_id": [end, pad]}, repetition_penalty=1.1
    )
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, **SPECIAL, model_max_length=64)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))


def set_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def set_fields(path: Path, **fields) -> None:
    """Set fields of a JSON file; those that are `...` are taken out."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
