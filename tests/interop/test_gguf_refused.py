"""GGUF files of models that are not ours: a sentence, and nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
from support.command import require_refused
from support.gguf_files import Part, Parts, parts_of


def field(**changes):
    return lambda parts: parts.set(**changes)


def reshaped(parts: Parts) -> None:
    parts.tensor("blk.1.ffn_down.weight").shape = [64, 96]


def not_finite(parts: Parts) -> None:
    part = parts.tensor("blk.1.ffn_down.weight")
    part.content = np.full(64 * 96, np.inf, np.float16).tobytes()


def more(name: str):
    return lambda parts: parts.tensors.append((name, Part(0, [2], b"\0" * 8)))


def twice(parts: Parts) -> None:
    parts.tensors.append(parts.tensors[0])


def key_twice(parts: Parts) -> None:
    parts.fields.append(parts.fields[0])


def retyped(kind: int):
    def harm(parts: Parts) -> None:
        parts.tensor("output_norm.weight").kind = kind

    return harm


def token(number: int, text: str):
    def harm(parts: Parts) -> None:
        tokens = list(parts.field("tokenizer.ggml.tokens"))
        tokens[number] = text
        parts.set(tokenizer__ggml__tokens=tokens)

    return harm


def merge(text: str):
    def harm(parts: Parts) -> None:
        merges = [text, *parts.field("tokenizer.ggml.merges")]
        parts.set(tokenizer__ggml__merges=merges)

    return harm


def renamed(old: str, new: str):
    def harm(parts: Parts) -> None:
        parts.tensors = [(new if name == old else name, part) for name, part in parts.tensors]

    return harm


def version(number: int):
    def harm(parts: Parts) -> None:
        parts.version = number

    return harm


def big_endian(parts: Parts) -> None:
    parts.order = ">"


FACTORS = np.full(8, 4, np.float32).tobytes()
ONLY_PRE = 'and only "smollm" or "gpt-2" or'
PARTS = {
    "another architecture": (
        field(general__architecture="mamba"),
        'it has general.architecture "mamba", and only "llama" can be imported.',
    ),
    "no architecture": (field(general__architecture=...), "it has general.architecture null"),
    "an adapter": (field(general__type="adapter"), 'it has general.type "adapter", and only'),
    "scaled positions": (
        field(llama__rope__scaling__type="yarn"),
        'it has llama.rope.scaling.type "yarn", and only "none" or "linear" can be imported.',
    ),
    "linearly scaled positions": (
        field(llama__rope__scaling__factor=2.0),
        "it has llama.rope.scaling.factor 2.0, and only 0 or 1",
    ),
    "factors of positions": (
        lambda parts: parts.tensors.append(("rope_freqs.weight", Part(0, [8], FACTORS))),
        "its rope_freqs.weight has factors other than 1 (scaled rotary positions)",
    ),
    "partial positions": (
        field(llama__rope__dimension_count=8),
        "it has llama.rope.dimension_count 8, and only 16 can be imported.",
    ),
    "wider heads": (
        field(llama__attention__key_length=32),
        "it has llama.attention.key_length 32, and only 16",
    ),
    "wider values": (
        field(llama__attention__value_length=8),
        "it has llama.attention.value_length 8, and only 16",
    ),
    "a window": (
        field(llama__attention__sliding_window=32),
        "it has llama.attention.sliding_window 32, and only 0",
    ),
    "scaled logits": (field(llama__logit_scale=8.0), "it has llama.logit_scale 8.0, and only 0"),
    "scaled experts": (
        field(llama__expert_weights_scale=2.5),
        "it has llama.expert_weights_scale 2.5, and only 0 or 1",
    ),
    "a field of a model that is not known": (
        field(llama__ssm__state_size=16),
        "it has llama.ssm.state_size 16, which may change what a model computes",
    ),
    "other vocabulary": (field(llama__vocab_size=329), "it has llama.vocab_size 329, and only 330"),
    "no width": (field(llama__embedding_length=...), "it lacks the field llama.embedding_length."),
    "a width in words": (
        field(llama__embedding_length="wide"),
        'it has llama.embedding_length "wide", and only a number',
    ),
    "a width that is no whole number": (
        field(llama__embedding_length=64.0),
        "llama.embedding_length takes a whole number, not 64.0",
    ),
    "heads for each layer": (
        field(llama__attention__head_count_kv=[2, 4]),
        "it has llama.attention.head_count_kv with 2 values, and only a number",
    ),
    "no heads for the keys": (
        field(llama__attention__head_count_kv=3),
        "llama.attention.head_count 4 is not a multiple of llama.attention.head_count_kv 3",
    ),
    "a width beyond all": (
        field(llama__feed_forward_length=2**31),
        "llama.feed_forward_length must be at most 16,777,216",
    ),
    "a width that is not the tensors'": (
        field(llama__feed_forward_length=4096),
        "its blk.0.ffn_gate.weight has shape (96, 64), but the fields give the model (4096, 64).",
    ),
    "more layers than tensors": (
        field(llama__block_count=4000),
        "it has tensors of 2 layers, but llama.block_count is 4000.",
    ),
    "fewer layers than tensors": (
        field(llama__block_count=1),
        "it has a tensor blk.1.attn_k.weight, for which the model has no place",
    ),
    "experts without a number": (
        field(llama__expert_count=4),
        "it lacks the field llama.expert_used_count.",
    ),
    "a missing tensor": (
        lambda parts: parts.drop("blk.1.ffn_norm.weight"),
        "it lacks the tensor blk.1.ffn_norm.weight.",
    ),
    "a tensor of another shape": (
        reshaped,
        "its blk.1.ffn_down.weight has shape (96, 64), but the fields give the model (64, 96).",
    ),
    "a bias": (more("blk.0.attn_q.bias"), "it has a tensor blk.0.attn_q.bias, for which the"),
    "a tensor at a path": (
        renamed("output_norm.weight", "../../etc/passwd"),
        "it is damaged: the name of a tensor in it is '../../etc/passwd'",
    ),
    "a field at a path": (
        lambda parts: parts.fields.append(("general/../name", "m")),
        "it is damaged: the name of a field in it is 'general/../name'",
    ),
    "a tensor twice": (twice, "it is damaged: it has the tensor token_embd.weight twice"),
    "a field twice": (key_twice, "it is damaged: it has the field general.architecture twice"),
    "a weight that is infinite": (
        not_finite,
        "m.gguf is broken: in blk.1.ffn_down.weight a weight is infinite.",
    ),
    "a tensor of an unknown type": (
        retyped(99),
        "output_norm.weight is of type 99, which the installed package gguf does not know",
    ),
    "a tensor of integers": (
        retyped(26),
        "output_norm.weight is in I32, which the installed package gguf cannot dequantize",
    ),
    "a tensor of blocks that do not fit": (
        retyped(12),
        "output_norm.weight has shape (64,), and Q4_K takes 256 weights of a row at a time",
    ),
    "a part of a model": (
        field(split__count=3),
        "it is one of 3 parts of a model; make one file of them with llama.cpp",
    ),
    "an old version": (version(1), "it is of version 1 of the format, and only versions 2 and 3"),
    "big-endian": (big_endian, "it is big-endian, and only little-endian files can be imported"),
    "an odd alignment": (
        field(general__alignment=48),
        "it is damaged: general.alignment is 48, not a power of two",
    ),
    "words of SentencePiece": (
        field(tokenizer__ggml__model="llama"),
        'it has tokenizer.ggml.model "llama", and only "gpt2" can be imported.',
    ),
    "words cut otherwise": (
        field(tokenizer__ggml__pre="llama-bpe"),
        f'it has tokenizer.ggml.pre "llama-bpe", {ONLY_PRE}',
    ),
    "words cut in no known way": (
        field(tokenizer__ggml__pre=...),
        f"it has tokenizer.ggml.pre null, {ONLY_PRE}",
    ),
    "a space before each text": (
        field(tokenizer__ggml__add_space_prefix=True),
        "it has tokenizer.ggml.add_space_prefix true, and only false",
    ),
    "no tokens": (
        field(tokenizer__ggml__tokens=...),
        "it has tokenizer.ggml.tokens null, and only a list of texts",
    ),
    "tokens that are numbers": (
        field(tokenizer__ggml__tokens=[1, 2, 3]),
        "it has tokenizer.ggml.tokens with 3 values, and only a list of texts",
    ),
    "a token twice": (token(3, "a"), "it has the token 'a' twice in tokenizer.ggml.tokens."),
    "types of other tokens": (
        field(tokenizer__ggml__token_type=[1] * 3),
        "it has 330 tokens and tokenizer.ggml.token_type of 3.",
    ),
    "a byte as a token": (
        field(tokenizer__ggml__token_type=[6] * 330),
        "it has tokenizer.ggml.token_type 6, and only 1 (normal)",
    ),
    "a merge of three": (merge("a b c"), "it has 'a b c' in tokenizer.ggml.merges, and only pairs"),
    "a merge of no tokens": (merge("日 本"), "its tokenizer is damaged ("),
    "no merges": (field(tokenizer__ggml__merges=...), "it has tokenizer.ggml.merges null"),
    "an end in words": (
        field(tokenizer__ggml__eos_token_id="</s>"),
        'it has tokenizer.ggml.eos_token_id "</s>", and only the number of a token',
    ),
    "a template that is none": (
        field(tokenizer__chat_template=[1]),
        "tokenizer.chat_template is not a text of at most 1,048,576 bytes.",
    ),
    "a template that is too long": (
        field(tokenizer__chat_template__long="x" * (2**20 + 1)),
        "tokenizer.chat_template.long is not a text of at most",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_what_our_model_does_not_compute_is_refused(capsys, workdir, good_gguf, case):
    harm, sentence = PARTS[case]
    parts = parts_of(good_gguf)
    harm(parts)
    parts.write(Path("m.gguf"))
    require_refused(capsys, "./m.gguf", sentence)
