"""A pilot: a few short runs of two arms of a study, to see how much the loss varies over seeds."""

import dataclasses

from smolctl.studies.study_file import Study
from smollm2.protocol.resolve import resolve
from smollm2.runs.names import LONGEST_NAME

PILOT_ARMS = 2
PILOT_SEEDS = 3
SHARE = 4  # of the steps: a quarter


def pilot_of(study: Study) -> Study:
    """A study of its own, so that nothing of it counts as a result: the first arm and the next one
    of another model, with three new seeds, at a quarter of the steps, scored on as much text, at
    the rates of the recipe. A control beside the first arm would show less noise."""
    seeds = [seed for arm in study.arms for seed in (*arm.seeds, *arm.orders)]
    seeds += study.tuning.seeds if study.tuning else ()
    fresh = [max(seeds) + 1 + number for number in range(PILOT_ARMS * PILOT_SEEDS)]
    first, *others = study.arms
    base = resolve(first.config)
    models = [arm for arm in others if resolve(arm.config).model != base.model] or others
    arms = [
        dataclasses.replace(
            arm,
            seeds=tuple(fresh[number::PILOT_ARMS]),  # their own: the arms may be one model
            data_seeds=None if arm.config.data_seed is not None else tuple(fresh[:PILOT_SEEDS]),
            config=dataclasses.replace(
                arm.config,
                steps=max(1, base.steps // SHARE),
                tokens=None,
                flops=None,
                val_tokens=base.validation_tokens,
                test_tokens=base.test_tokens,
            ),
        )
        for number, arm in enumerate((first, *models)[:PILOT_ARMS])
    ]
    return dataclasses.replace(
        study,
        name=f"{study.name[: LONGEST_NAME - len('-pilot')]}-pilot",
        arms=tuple(arms),
        looks=None,
        tuning=None,
        evaluation=None,
        quantization=None,
        speed=None,
        ladder=None,
        notes=dataclasses.replace(study.notes, superseded=None, claims=None),
    )
