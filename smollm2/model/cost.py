"""Parameters, FLOPs per token and cache bytes of a model, computed from its shape alone."""

from dataclasses import dataclass

from smollm2.model.config import VARIANTS, ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters; an embedding that is also the head is counted once.

    total: all of them.
    active: those that one token uses (less than total only for a mixture of experts).
    embedding: the token embedding, and the head if it is untied.
    """

    total: int
    active: int
    embedding: int

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding


def parameters(config: ModelConfig) -> Parameters:
    """Exact parameter counts of `config`."""
    n_copies = 1 if config.tie_embeddings else 2
    embedding = n_copies * config.vocab_size * config.d_model
    norms = (2 * config.n_layers + 1) * config.d_model
    total = matrix_parameters(config, config.n_experts)
    active = matrix_parameters(config, config.n_active_experts)
    return Parameters(embedding + norms + total, embedding + norms + active, embedding)


def full_size() -> int:
    """The least non-embedding parameters of an imported model of full size: half of the smallest
    variant's, so a few layers or heads fewer do not make it small. Nano variants have 1/32."""
    return min(parameters(config).non_embedding for config in VARIANTS.values()) // 2


def scale_of(config: ModelConfig) -> str:
    """The scale of an imported model: `full`, or `small`. Speed, bytes and quantization are not
    judged at `small`, as at `nano`."""
    return "full" if parameters(config).non_embedding >= full_size() else "small"


def matrix_parameters(config: ModelConfig, n_experts: int) -> int:
    """Parameters in the matrices of all layers, with `n_experts` experts counted in each."""
    kv_width = config.n_kv_heads * config.head_dim
    attention = 2 * config.d_model * config.d_model + 2 * config.d_model * kv_width
    router = config.n_experts * config.d_model if config.is_moe else 0
    return config.n_layers * (attention + router + n_experts * 3 * config.d_model * config.d_ff)


def forward_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of one forward pass, averaged over the positions of a sequence of `seq_len`.

    Two FLOPs per matrix parameter, head included and embedding lookup not (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and attention's scores and weighted sums, 2 · 2 · d_model for
    each position attended to (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). A causal model
    attends to (seq_len + 1) / 2 positions on average; masked scores are not counted, even if a
    kernel computes them.
    """
    matrices = matrix_parameters(config, config.n_active_experts)
    head = config.vocab_size * config.d_model
    attention = config.n_layers * 2 * 2 * config.d_model * (seq_len + 1) / 2
    return 2 * (matrices + head) + attention


def training_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Three forward passes: the backward pass computes two gradients for each product."""
    return 3 * forward_flops_per_token(config, seq_len)


def kv_cache_bytes_per_token(config: ModelConfig) -> int:
    """Bytes that generation caches for each token: keys and values of every layer, bf16."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * 2
