"""Which arms are the same model, of the same size, or one model under two names."""

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison

SAME_SIZE = 0.02  # parameters and FLOPs that differ by less count as equal


def is_control(base: Arm, arm: Arm) -> bool:
    """Whether the two are one model, trained in one way with different seeds, under two names."""
    one, two = base.protocol, arm.protocol
    is_same = (one.model, one.recipe, one.steps) == (two.model, two.recipe, two.steps)
    return is_same and not set(base.seeds) & set(arm.seeds)


def differ_in_rate_only(base: Arm, arm: Arm) -> bool:
    """Whether the two are one model at two learning rates, whose difference is one of tuning."""
    return base.protocol.model == arm.protocol.model and base.rates != arm.rates


def is_of_controls(study: Comparison) -> bool:
    """Whether every arm is the first one under another name."""
    return bool(study.others) and all(is_control(study.base, arm) for arm in study.others)


def is_same_model(arm: Arm, study: Comparison) -> bool:
    """Whether the study has this arm too: by name the same model, or at another scale the same
    variant."""
    other = next((other.protocol for other in study.arms if other.name == arm.name), None)
    if other is None:
        return False
    if other.scale != arm.protocol.scale:
        return other.variant == arm.protocol.variant
    return other.model == arm.protocol.model


def has_same_base(one: Comparison, other: Comparison) -> bool:
    """Whether two studies compare with the same model, under the same name."""
    return one.base.name == other.base.name and is_same_model(one.base, other)


def size_changes(base: Arm, arm: Arm) -> tuple[float, float, float]:
    """How many more parameters, active parameters and FLOPs per token an arm has, as shares."""
    return (
        arm.parameters["total"] / base.parameters["total"] - 1,
        arm.parameters["active"] / base.parameters["active"] - 1,
        arm.flops_per_token / base.flops_per_token - 1,
    )


def is_alike(base: Arm, arm: Arm) -> bool:
    """Whether the two have equal size and cost."""
    return max(map(abs, size_changes(base, arm))) <= SAME_SIZE
