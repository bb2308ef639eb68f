"""Models of one shape at several sizes: width, depth, d_ff and heads in constant ratios.

The size of a model is its number of non-embedding parameters, as in Kaplan et al. 2020
(arXiv:2001.08361, section 2): arms differ in their layers, and at a quarter of the width the
embedding of 4,096 tokens has up to half of all parameters. All experts of a mixture count.
"""

import math
from collections.abc import Iterator

from smolctl.analysis.ladder_notes import parsed_size, size_text
from smollm2.errors import UserError
from smollm2.model.config import LIMITS, ModelConfig, replace_fields
from smollm2.model.cost import parameters

SIZE_TOLERANCE = 0.05  # share of the size
SHAPE_TOLERANCE = 1.25  # factor between a dimension and what the common scale asks for
HEADS_TOLERANCE = math.sqrt(2)  # heads are few and whole
STEP = 8  # of the widths: rows stay aligned, and experts need it
NEAREST = 4  # values of a dimension on either side of the wanted one that are tried
NEAREST_FACTOR = 1.02  # between the sizes that are looked at for one that fits
FARTHEST_FACTOR = 100


def at_size(config: ModelConfig, target: float) -> ModelConfig | None:
    """The model of about `target` non-embedding parameters whose shape is most like that of
    `config`; None if none is like it.

    Every dimension is its own times the cube root of the change in size, rounded: `n_layers`, heads
    (with as many heads per key; one key head stays one), `d_model` to a multiple of 8 and of twice
    the heads. `d_ff`, to a multiple of 8, takes what is left of the size. Of the models within 5 %
    of the size whose dimensions are within a factor of 1.25 of that (heads of the root of 2), the
    one with the smallest sum of squared logarithms of these factors is taken.
    """
    scale = (target / parameters(config).non_embedding) ** (1 / 3)
    found = list(candidates(config, target, scale))
    return min(found, key=lambda one: unlikeness(one, config, scale), default=None)


def candidates(config: ModelConfig, target: float, scale: float) -> Iterator[ModelConfig]:
    """See `at_size`."""
    each = 1 if config.n_kv_heads == 1 else config.n_heads // config.n_kv_heads
    for heads in near(config.n_heads * scale, each, HEADS_TOLERANCE):
        keys = key_heads(config, heads)
        if keys is None:
            continue
        step = math.lcm(STEP, 2 * heads)
        for width in near(config.d_model * scale, step, SHAPE_TOLERANCE):
            for layers in near(config.n_layers * scale, 1, SHAPE_TOLERANCE):
                values = {"d_model": width, "n_layers": layers, "n_heads": heads}
                found = filled_up(config, values | {"n_kv_heads": keys}, target)
                if found and is_alike_in_shape(found, config, target, scale):
                    yield found


def filled_up(config: ModelConfig, values: dict[str, int], target: float) -> ModelConfig | None:
    """The model of these dimensions whose `d_ff` brings it nearest to the size; None if there is
    none."""
    if any(values[name] > LIMITS[name] for name in values):
        return None
    one, two = (replace_fields(config, values | {"d_ff": d_ff}) for d_ff in (STEP, 2 * STEP))
    least = parameters(one).non_embedding
    each = parameters(two).non_embedding - least
    d_ff = STEP * (1 + round((target - least) / each))
    if not 0 < d_ff <= LIMITS["d_ff"]:
        return None
    return replace_fields(one, {"d_ff": d_ff})


def key_heads(config: ModelConfig, heads: int) -> int | None:
    """The key-value heads beside so many heads; None if one key head for all would be one of its
    own."""
    if config.n_kv_heads == 1 < config.n_heads:
        return 1 if heads > 1 else None
    return heads // (config.n_heads // config.n_kv_heads)


def is_alike_in_shape(found: ModelConfig, config: ModelConfig, target: float, scale: float) -> bool:
    """Whether size and `d_ff` are within their tolerances."""
    off = abs(parameters(found).non_embedding / target - 1)
    stretch = abs(math.log(found.d_ff / (config.d_ff * scale)))
    return off <= SIZE_TOLERANCE and stretch <= math.log(SHAPE_TOLERANCE)


def unlikeness(found: ModelConfig, config: ModelConfig, scale: float) -> float:
    """The sum of squares by which the logarithms of the dimensions miss the common scale."""
    return sum(
        math.log(getattr(found, name) / (getattr(config, name) * scale)) ** 2
        for name in ("d_model", "n_layers", "d_ff", "n_heads")
    )


def near(wanted: float, step: int, factor: float) -> list[int]:
    """The multiples of `step` within a factor of a dimension, of many the nearest."""
    middle = max(1, round(wanted / step))
    found = (step * count for count in range(max(1, middle - NEAREST), middle + NEAREST + 1))
    return [one for one in found if wanted / factor <= one <= wanted * factor]


def require_sizes(shapes: dict[str, ModelConfig], label: str, target: float) -> None:
    """Raise `UserError` if an arm has no shape of that size; the message names the nearest sizes at
    which all arms have one.

    Args:
        shapes: the model of each arm.
        label: the size as it is typed.
    """
    lacking = [name for name, config in shapes.items() if at_size(config, target) is None]
    if not lacking:
        return
    fitting = " and ".join(nearest_sizes(list(shapes.values()), target))
    hint = f" The nearest sizes that fit all arms: {fitting}." if fitting else ""
    raise UserError(
        f"no model of {label} non-embedding parameters has the shape of arm {lacking[0]!r} (within "
        f"{100 * SIZE_TOLERANCE:g} % of the size and {100 * (SHAPE_TOLERANCE - 1):g} % of its "
        f"ratios of width, depth and d_ff).{hint}"
    )


def nearest_sizes(configs: list[ModelConfig], target: float) -> list[str]:
    """The nearest size below and above at which every model has a shape, as a study file has them;
    without those that are more than a factor of 100 away."""
    texts = []
    for factor in (1 / NEAREST_FACTOR, NEAREST_FACTOR):
        for count in range(1, math.ceil(math.log(FARTHEST_FACTOR) / math.log(NEAREST_FACTOR))):
            text = size_text(target * factor**count)
            if all(at_size(config, parsed_size(text)) for config in configs):
                texts.append(text)
                break
    return texts
