"""Recipes: how a model is trained, apart from how long and on what."""

import math
from dataclasses import dataclass

from smollm2.errors import UserError
from smollm2.model.config import ModelConfig
from smollm2.model.cost import matrix_parameters, parameters
from smollm2.protocol.optimizers import find_optimizer

SCHEDULES = ("wsd", "cosine")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from how long and on what.

    The defaults follow the published training of SmolLM2-135M (AdamW, WSD; huggingface/smollm),
    except for the peak learning rate: theirs suits a million tokens per step, `lr` here was
    chosen for a few thousand (docs/reference.md).
    """

    optimizer: str = "adamw"  # muon: Muon for the matrices of the layers, AdamW for the rest
    lr: float = 1e-3  # peak, AdamW
    muon_lr: float = 0.02  # peak, Muon
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01  # of AdamW's matrices; norms and Muon's matrices have none
    momentum: float = 0.95  # Muon
    grad_clip: float = 1.0  # global norm of the gradient
    grad_accum: int = 1  # micro-batches per step
    balance_weight: float = 0.01  # of the experts' balance loss (Fedus et al. 2021)
    schedule: str = "wsd"  # linear warm-up, then constant and linear to final_lr; or cosine
    warmup: float = 0.05  # share of the schedule
    max_warmup_steps: int = 2000
    decay: float = 0.2  # share of the schedule, wsd only
    final_lr: float = 0.0  # share of the peak
    schedule_length: float = 1.0  # in horizons; above 1 the run ends before its schedule does

    def __post_init__(self) -> None:
        find_optimizer(self.optimizer)
        if self.schedule not in SCHEDULES:
            raise UserError(f"Unknown schedule {self.schedule!r}. Choose {' or '.join(SCHEDULES)}.")
        for names, fits, wanted in (
            (("lr", "muon_lr", "eps", "grad_clip"), lambda x: 0 < x < math.inf, "positive"),
            (("beta1", "beta2", "momentum"), lambda x: 0 <= x < 1, "from 0 to less than 1"),
            (("warmup", "decay", "final_lr"), lambda x: 0 <= x <= 1, "from 0 to 1"),
            (("weight_decay", "balance_weight"), lambda x: 0 <= x < math.inf, "0 or more"),
            (("grad_accum", "schedule_length"), lambda x: 1 <= x < math.inf, "at least 1"),
            (("max_warmup_steps",), lambda x: x >= 0, "0 or more"),
        ):
            for name in names:
                value = getattr(self, name)
                if not fits(value):  # also refuses nan
                    needed = wanted if abs(value) < math.inf else "finite"
                    raise UserError(f"{name} must be {needed}, not {value}.")

    @property
    def rates(self) -> dict[str, float]:
        """The peak learning rates of the optimizer, by field."""
        return {name: getattr(self, name) for name in find_optimizer(self.optimizer).rates}

    def state_bytes(self, model: ModelConfig, dtype: str) -> int:
        """Bytes of weights, fp32 masters, gradients and optimizer state in training."""
        spec = find_optimizer(self.optimizer)
        is_rounded = dtype == "bfloat16"  # in fp32 the weights are their own masters
        weights = 6 if is_rounded else 4
        gradients = 2 if is_rounded and self.grad_accum == 1 else 4
        total = parameters(model).total
        matrices = matrix_parameters(model, model.n_experts)
        state = spec.state_bytes * (total - matrices) + spec.layer_matrix_state_bytes * matrices
        return (weights + gradients) * total + state


RECIPES: dict[str, Recipe] = {
    "smollm2": Recipe(),
    # What the public code behind the power-of-two study did: 12 micro-batches per update, and a
    # cosine whose length counted micro-batches but which moved once an update, so that it hardly
    # decays and warms up for 60 % of the run. Its dropout, QK-norm and scaled embeddings are
    # architecture and not part of this.
    "seed": Recipe(
        optimizer="muon",
        lr=3e-3,
        beta2=0.999,
        weight_decay=0.2,
        grad_accum=12,
        schedule="cosine",
        max_warmup_steps=10**9,
        final_lr=0.1,
        schedule_length=12.0,
    ),
}


# Narrower models need larger steps: the rate of `smollm2` at nano scale.
NANO_LR = 3e-3
