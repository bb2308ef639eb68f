"""The optimizers by name.

Every module of `smollm2.training.optim` declares a `SPEC`; a new one needs no other change.
`register` adds one from elsewhere. No module here or there imports torch before a training starts,
so a typo is refused at once.
"""

from smollm2.discovery import declared
from smollm2.errors import unknown
from smollm2.protocol.optimizer_spec import OptimizerSpec

# By name, since the modules of training import those of this package.
FOLDER = "smollm2.training.optim"
OPTIMIZERS: dict[str, OptimizerSpec] = {}


def register(spec: OptimizerSpec) -> None:
    """Make an optimizer known by its name, which must be new."""
    if spec.name in OPTIMIZERS:
        raise ValueError(f"There is already an optimizer {spec.name!r}.")
    OPTIMIZERS[spec.name] = spec


def find_optimizer(name: str) -> OptimizerSpec:
    """The optimizer called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, list(OPTIMIZERS))
    return OPTIMIZERS[name]


def rate_fields() -> list[str]:
    """The recipe's fields that are a peak learning rate of some optimizer."""
    return list(dict.fromkeys(rate for spec in OPTIMIZERS.values() for rate in spec.rates))


for _spec in declared(FOLDER, "SPEC"):
    register(_spec)
