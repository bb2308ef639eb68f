"""Which group sizes divide the weights of an architecture; needs no trained run."""

from dataclasses import dataclass

from smollm2.config import ModelConfig

GROUP_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True)
class Weight:
    """A kind of matrix: `count` of them map `n_in` numbers to `n_out`."""

    name: str
    n_out: int
    n_in: int
    count: int

    @property
    def parameters(self) -> int:
        return self.n_out * self.n_in * self.count

    def dividing_groups(self) -> tuple[int, ...]:
        """Group sizes that divide the input width; kernels skip or refuse a weight otherwise."""
        return tuple(size for size in GROUP_SIZES if self.n_in % size == 0)


def weights(config: ModelConfig) -> list[Weight]:
    """Every kind of matrix of the model, as published (unfused)."""
    kv_width, layers = config.n_kv_heads * config.head_dim, config.n_layers
    experts = layers * config.n_experts
    kinds = [
        Weight("query, output", config.d_model, config.d_model, 2 * layers),
        Weight("key, value", kv_width, config.d_model, 2 * layers),
        Weight("gate, up", config.d_ff, config.d_model, 2 * experts),
        Weight("down", config.d_model, config.d_ff, experts),
    ]
    if config.is_moe:
        kinds.append(Weight("router", config.n_experts, config.d_model, layers))
    return [*kinds, Weight("embedding, head", config.vocab_size, config.d_model, 1)]


def divisible_share(config: ModelConfig, group_size: int) -> float:
    """Share of the matrices' parameters whose input width `group_size` divides."""
    kinds = weights(config)
    divisible = sum(w.parameters for w in kinds if w.n_in % group_size == 0)
    return divisible / sum(w.parameters for w in kinds)
