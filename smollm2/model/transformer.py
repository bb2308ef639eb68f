"""SmolLM2: a Llama-style decoder (GQA, rotary positions, RMSNorm, SwiGLU).

Shape suffixes: B batch, T positions, D d_model, H query heads, K key-value heads, E head_dim,
F d_ff, V vocabulary, N = B·T tokens.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smollm2.model.attention import (
    COMPILED_POSITIONS,
    causal_attention,
    hidden_keys,
    suits_tiles,
)
from smollm2.model.config import ModelConfig
from smollm2.model.feedforward import swiglu
from smollm2.model.loss import ToGrad, compiled_cross_entropy_to_grad_, linear_cross_entropy
from smollm2.model.moe import MoE, Routing, mean_routing

# Shapes of models and tokens for which this process keeps compiled layers, and the most codes of
# one: with and without gradients, for whole and shorter batches, with room to spare.
MOST_KINDS = 8
CODES_OF_A_KIND = 8
compiled_kinds: set[tuple[Any, ...]] = set()


class Loss(NamedTuple):
    """Mean cross entropy of a batch in nats/token, and the routing of an MoE."""

    cross_entropy: Tensor
    routing: Routing | None


class Embedding(nn.Embedding):
    """A matrix with one row per token: the embedding (and tied head), or an untied head."""

    def reset_parameters(self) -> None:
        """Leave the weights unset: `SmolLM2.initialize` sets them, and torch's own way of setting
        those of the meta device loads its compiler, which takes a second."""

    def logits(self, h: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D)."""
        return F.linear(h, self.weight)


class KVCache(NamedTuple):
    """A layer's cached keys and values (B, K, L, E); a call writes those of its own tokens at
    `positions` (T,)."""

    keys: Tensor
    values: Tensor
    positions: Tensor


class Attention(nn.Module):
    """Causal grouped-query attention; one matrix makes queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.d_model, sum(self.heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.hidden_keys: Tensor | None = None  # of compiled code

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_B1TT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        n_heads, n_kv_heads, _ = self.heads
        qkv = self.qkv(x_BTD).view(B, T, -1, self.head_dim)
        qk, v_BTKE = qkv.split([n_heads + n_kv_heads, n_kv_heads], dim=2)
        # Queries and keys lie side by side, so one rotation turns both.
        q_BTHE, k_BTKE = rotate(qk, *rope).split([n_heads, n_kv_heads], dim=2)
        k_BKTE, v_BKTE = k_BTKE.transpose(1, 2), v_BTKE.transpose(1, 2)
        if cache is not None:
            k_BKTE = cache.keys.index_copy_(2, cache.positions, k_BKTE)
            v_BKTE = cache.values.index_copy_(2, cache.positions, v_BKTE)
        return self.out(attend(q_BTHE, k_BKTE, v_BKTE, mask_B1TT, self.hidden_keys))


def attend(
    q_BTHE: Tensor,
    k_BKLE: Tensor,
    v_BKLE: Tensor,
    mask_B1TL: Tensor | None,
    hidden_T1T: Tensor | None = None,
) -> Tensor:
    """Softmax attention (B, T, D) over L positions; causal without a mask; T = 1 attends to all.

    Args:
        hidden_T1T: see `causal_attention`.
    """
    B, T, n_heads, head_dim = q_BTHE.shape
    n_kv_heads = k_BKLE.shape[1]
    if T == 1:
        # Query heads that share keys become rows of one head: on a CPU in bf16, 2 to 8 times as
        # fast as one row per head.
        q_BKGE = q_BTHE.reshape(B, n_kv_heads, -1, head_dim)
        y_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKLE, v_BKLE, attn_mask=mask_B1TL)
        return y_BKGE.reshape(B, T, -1)
    if hidden_T1T is not None and len(hidden_T1T) < T:
        hidden_T1T = None
    if mask_B1TL is None and suits_tiles(T, q_BTHE.device, q_BTHE.dtype):
        return causal_attention(q_BTHE, k_BKLE, v_BKLE, hidden_T1T).flatten(2)
    y_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BKLE,
        v_BKLE,
        attn_mask=mask_B1TL,
        is_causal=mask_B1TL is None,
        enable_gqa=n_kv_heads != n_heads,
    )
    return y_BHTE.transpose(1, 2).reshape(B, T, -1)


class MLP(nn.Module):
    """SwiGLU; one matrix makes gate and up."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_BTD)))


class Block(nn.Module):
    """One layer: attention, then a dense or mixture-of-experts MLP, each on a normed residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = MoE(config) if config.is_moe else MLP(config)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_B1TT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), rope, mask_B1TT, cache)
        h_BTD = self.mlp_norm(x_BTD)
        if isinstance(self.mlp, MoE):
            y_BTD, routing = self.mlp(h_BTD)
            return x_BTD + y_BTD, routing
        return x_BTD + self.mlp(h_BTD), None


class SmolLM2(nn.Module):
    """The language model; `model(tokens)` gives logits.

    Args:
        config: the architecture.
        seed: of the initial weights, which do not depend on the device or on global random state;
            None leaves them unset, to be loaded afterwards with `assign=True`.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.to_grad_: ToGrad | None = None  # of compiled code
        with torch.device("meta"):  # the default initialization would be thrown away
            self.embed = Embedding(config.vocab_size, config.d_model)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
            self.lm_head: Embedding | None = None
            if not config.tie_embeddings:
                self.lm_head = Embedding(config.vocab_size, config.d_model)
        if seed is not None:
            self.to_empty(device="cpu")
            self.initialize(seed)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Matrices from N(0, 1/d_model), the two that write into the residual stream narrower
        by √(2 n_layers) (as in the published training of SmolLM2), norms at one."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                writes = name.endswith((".attn.out.weight", ".mlp.down.weight", ".mlp.down"))
                depth = (2 * self.config.n_layers) ** 0.5 if writes else 1.0
                parameter.normal_(0.0, std / depth, generator=generator)

    @property
    def head(self) -> Embedding:
        """The output layer: the embedding if tied, else `lm_head`."""
        return self.embed if self.lm_head is None else self.lm_head

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations, and of weights that are not quantized."""
        return self.norm.weight.dtype

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask_BTT: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Final hidden states (B, T, D) before the head, and the routing averaged over layers.

        Args:
            positions_BT: each token's position, below T; None counts 0, 1, 2 along the row.
            mask_BTT: True where a token (row) attends to another (column); None is causal.
        """
        x_BTD = self.embed(tokens_BT)
        rope = rope_tables(self.config, tokens_BT.shape[1], x_BTD.device, x_BTD.dtype)
        if positions_BT is not None:
            rope = rope[0][positions_BT], rope[1][positions_BT]
        mask_B1TT = None if mask_BTT is None else mask_BTT[:, None]
        routings = []
        for block in self.blocks:
            x_BTD, routing = block(x_BTD, rope, mask_B1TT)
            if routing is not None:
                routings.append(routing)
        return self.norm(x_BTD), mean_routing(routings) if routings else None

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of integer tokens (B, T)."""
        h_BTD, _ = self.hidden(tokens_BT)
        return self.head.logits(h_BTD)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Loss:
        """Mean next-token loss; all logits never exist at once."""
        h_BTD, routing = self.hidden(tokens_BT)
        h_ND, targets_N = h_BTD.flatten(0, 1), targets_BT.flatten()
        loss = linear_cross_entropy(h_ND, self.head.weight, targets_N, self.to_grad_)
        return Loss(loss, routing)

    def compile_blocks(self, n_rows: int, n_positions: int) -> None:
        """Compile the layer, and on a CPU the loss, for tokens (B, T): a layer's code is compiled
        once and serves every layer, and later models of the same shape in this process."""
        kind = (self.config, self.dtype, self.device, n_rows, n_positions)
        # Beyond its limit torch would run a shape uncompiled, so we discard code before.
        if kind not in compiled_kinds and len(compiled_kinds) == MOST_KINDS:
            torch.compiler.reset()
            compiled_kinds.clear()
        compiled_kinds.add(kind)
        torch._dynamo.config.recompile_limit = MOST_KINDS * CODES_OF_A_KIND
        if self.device.type == "cpu":
            self.to_grad_ = compiled_cross_entropy_to_grad_
        mask_T1T = None
        if suits_tiles(n_positions, self.device, self.dtype) and n_positions <= COMPILED_POSITIONS:
            mask_T1T = hidden_keys(n_positions)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.hidden_keys = mask_T1T
            block.compile(dynamic=False)


def rope_tables(
    config: ModelConfig, n_positions: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, E) of the rotary embedding (Su et al. 2021, arXiv:2104.09864),
    in the half-split layout of transformers' Llama."""
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # as written there, to the last bit
    angles = torch.outer(torch.arange(n_positions, device=device).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + E/2) of the last dimension of x (B, T, heads, E)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def matrices(config: ModelConfig, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The published tensors that parameter `name` (or its gradient) holds, as labelled views.

    A fused matrix is cut into queries, keys and values or gate and up, a stack of experts into
    their matrices; other parameters are returned whole, under their own names.
    """
    if name.endswith("attn.qkv.weight"):
        kv_width = config.n_kv_heads * config.head_dim
        parts = tensor.split([config.d_model, kv_width, kv_width])
        return {f"{name}.{part}": view for part, view in zip("qkv", parts, strict=True)}
    views = {name: tensor}
    if tensor.ndim == 3:
        views = {f"{name}.{x}": expert for x, expert in enumerate(tensor)}
    if ".gate_up" not in name:
        return views
    return {
        f"{label}.{part}": half
        for label, view in views.items()
        for part, half in zip(("gate", "up"), view.chunk(2), strict=True)
    }
