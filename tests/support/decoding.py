"""Small models, prompts, and the tokens that decoding them gives."""

import pytest
import torch
from torch import nn

from smollm2 import VARIANTS, SmolLM2, variant
from smollm2.inference.decoder import generate

NANO = {name: variant(f"{name}:n_layers=2", scale="nano") for name in VARIANTS}
KINDS = ["orig", "pow2", "moe-160m"]  # 3 and 2 heads per key, and experts with one
PROMPT = [5, 17, 300, 4, 4, 99, 1024, 7]
OTHER_PROMPT = [8, 8, 2000, 31]
# The compiler's own warnings while it traces.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def greedy(decoder, prompt=PROMPT, n=40, **options):
    return list(generate(decoder, prompt, max_new_tokens=n, ends=(), **options))


@torch.no_grad()
def without_cache(model, prompt, n):
    """The greedy tokens, each computed from the whole text."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


class Int8(nn.Module):
    """Stands for a matrix in a quantized model: called alike, but without a `weight`."""

    def __init__(self, weight):
        super().__init__()
        scales = weight.detach().abs().amax(dim=1) / 127
        self.register_buffer("codes", (weight / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        y = torch.ops.aten._weight_int8pack_mm(flat, self.codes, self.scales)
        return y.view(*x.shape[:-1], -1)

    def rounded(self):
        return self.codes * self.scales[:, None]


class Int8Embedding(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.matrix = Int8(weight)

    def forward(self, tokens):
        return self.matrix.rounded()[tokens]

    def logits(self, h):
        return self.matrix(h)


def replace_matrices(model):
    """Replace every matrix by Int8; returns the model with the rounded weights."""
    rounded = SmolLM2(model.config)
    rounded.load_state_dict(model.state_dict())
    state = rounded.state_dict()
    for number, block in enumerate(model.blocks):
        for path in ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down"):
            quantized = Int8(block.get_submodule(path).weight)
            state[f"blocks.{number}.{path}.weight"].copy_(quantized.rounded())
            block.set_submodule(path, quantized)
    model.embed = Int8Embedding(model.embed.weight)
    state["embed.weight"].copy_(model.embed.matrix.rounded())
    return rounded
