"""A size ladder: one study file, repeated at several sizes.

Every size is a study of its own, called a rung: `gqa.toml` with `sizes = ["0.5M", "1M"]` gives the
studies `gqa-0.5m` and `gqa-1m`, each with its own ledger, tuning and seeds. See `ladder_notes` for
the table and `shape_scaling` for the models.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from smolctl.analysis.ladder_notes import TRANSFER, LadderNotes, parsed_size, rung_name
from smolctl.analysis.rate_transfer import between, rates_around, transferred
from smolctl.studies.arm_plan import ArmPlan
from smolctl.studies.older_studies import as_older_runs
from smolctl.studies.plan import horizons
from smolctl.studies.rate_grid import ON_EITHER_SIDE
from smolctl.studies.runner import Observe, Session, unobserved
from smolctl.studies.shape_scaling import at_size, require_sizes
from smolctl.studies.study_file import Study, read_study
from smolctl.studies.study_keys import errors_of
from smollm2.errors import UserError
from smollm2.model.config import ModelConfig, split_setting, variant
from smollm2.protocol.resolve import resolve, resolve_recipe
from smollm2.runs.names import require_plain
from smollm2.runs.run import list_runs

SCALED = ("d_model", "n_heads", "n_kv_heads", "n_layers", "d_ff")
HORIZON = ("steps", "tokens", "flops")  # of [train]


def sessions_of(
    path: Path, results: Path, observe: Observe = unobserved, source: str | None = None
) -> Iterator[Session]:
    """The session of a study file; of a ladder those of its rungs, from the smallest. Each is made
    when it is asked for: the rates of a rung may follow from what the first session has done.

    Raises:
        UserError: as `read_rungs`.
    """
    rungs, rates = read_rungs(path), dict[str, float]()
    smallest = rungs[0]
    for rung in rungs:
        runs = [run for one in rungs for run in list_runs(results, one.name)[0]]
        study = as_older_runs(runs, with_rates(rung, rungs, rates))
        session = Session(study, results, observe, source)
        yield session
        if rung is smallest:
            rates = session.rates()


def read_rungs(path: Path) -> tuple[Study, ...]:
    """The studies of a study file, as `rungs_of`, checked to be such that their runs can be made.

    Raises:
        UserError: as `read_study`, `rungs_of` and `horizons`; it names the file and the key.
    """
    study = read_study(path)
    with errors_of(path):
        rungs = rungs_of(study)
        for rung in rungs:  # how long a step takes is not what is checked
            horizons(rung, {arm.name: 1.0 for arm in rung.arms})
    return rungs


def rungs_of(study: Study) -> tuple[Study, ...]:
    """The studies of a ladder, from the smallest size; of another study itself.

    Raises:
        UserError: an arm has no shape at a size, the horizon is given twice, or rates are to be
            transferred and there are none or not by [tune].
    """
    notes = study.ladder
    if notes is None or notes.rung is not None:
        return (study,)
    given = [name for name in HORIZON if getattr(study.arms[0].config, name) is not None]
    if given:
        raise UserError(
            f"[train] has {given[0]}, and the steps of a ladder follow from tokens_per_parameter: "
            f"omit {given[0]}."
        )
    if notes.rate == TRANSFER and not (study.tuning and study.tuning.grows):
        raise UserError(
            'rate = "transfer" scales the rates that [tune] chose at the smallest size: give the '
            "study file a [tune]."
        )
    shapes = {arm.name: shape_of(arm) for arm in study.arms}
    for size in notes.sizes:
        require_plain("study", rung_name(study.name, size))
        require_sizes(shapes, size, parsed_size(size))
        refuse_equal_shapes(shapes, size)
    return tuple(rung_of(study, notes, shapes, size) for size in notes.sizes)


def shape_of(arm: ArmPlan) -> ModelConfig:
    """The model of an arm before it is scaled."""
    _, settings = resolve_recipe(arm.config)
    return variant(arm.config.variant, arm.config.scale, settings)


def refuse_equal_shapes(shapes: Mapping[str, ModelConfig], size: str) -> None:
    """Raise `UserError` if two models that differ are rounded to one at a size."""
    for (one, first), (two, second) in itertools.combinations(shapes.items(), 2):
        if first != second and at_size(first, parsed_size(size)) == at_size(
            second, parsed_size(size)
        ):
            raise UserError(
                f"at {size} parameters arms {one!r} and {two!r} are rounded to the same shape; "
                "give larger sizes."
            )


def rung_of(
    study: Study, notes: LadderNotes, shapes: Mapping[str, ModelConfig], size: str
) -> Study:
    """The study at one size, before rates are transferred."""
    arms = tuple(
        dataclasses.replace(
            arm,
            config=dataclasses.replace(
                arm.config,
                settings=settings_at(arm, shapes[arm.name], parsed_size(size)),
                tokens=notes.tokens_per_parameter * parsed_size(size),
            ),
        )
        for arm in study.arms
    )
    steps = resolve(arms[0].config).steps
    arms = tuple(
        dataclasses.replace(arm, config=dataclasses.replace(arm.config, steps=steps, tokens=None))
        for arm in arms
    )
    return dataclasses.replace(
        study,
        name=rung_name(study.name, size),
        arms=arms,
        tuning=None if notes.is_transferred(size) else study.tuning,
        ladder=dataclasses.replace(notes, name=study.name, rung=size),
    )


def settings_at(arm: ArmPlan, shape: ModelConfig, target: float) -> tuple[str, ...]:
    """The settings of an arm with the dimensions of its model at a size."""
    model = at_size(shape, target)
    assert model is not None  # by `require_sizes`
    kept = [text for text in arm.config.settings if split_setting(text)[0] not in SCALED]
    return (*kept, *(f"{name}={getattr(model, name)}" for name in SCALED))


def with_rates(rung: Study, rungs: Sequence[Study], rates: Mapping[str, float]) -> Study:
    """The rung with what follows from the rates that the smallest one chose: the rates of its arms,
    or, where the rule is checked, a grid that has them. As it is while they are unknown.

    Args:
        rungs: all of the ladder, from the smallest.
        rates: by arm; empty while the smallest rung is being tuned.
    """
    notes, smallest = rung.ladder, rungs[0]
    if notes is None or notes.rate != TRANSFER or rung is smallest or not rates:
        return rung
    (check,) = (one for one in rungs if one.ladder and one.ladder.rung == notes.check)
    at_check = {
        arm.name: transferred(rates[arm.name], shape_of(arm).d_model, shape_of(larger).d_model)
        for arm, larger in zip(smallest.arms, check.arms, strict=True)
    }
    if rung is check:
        assert rung.tuning is not None
        grid = rates_around(list(at_check.values()), ON_EITHER_SIDE)
        return dataclasses.replace(rung, tuning=dataclasses.replace(rung.tuning, lr=grid))
    assert notes.rung is not None
    reach = notes.reach(notes.rung)
    arms = tuple(
        dataclasses.replace(
            arm,
            config=dataclasses.replace(
                arm.config, lr=between(rates[arm.name], at_check[arm.name], reach)
            ),
        )
        for arm in rung.arms
    )
    return dataclasses.replace(rung, arms=arms)
