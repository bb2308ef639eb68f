"""A study that an older version began goes on as it began."""

import dataclasses

from smolctl.studies.study_file import Study
from smollm2.protocol.run_config import FIRST, RunConfig
from smollm2.runs.run import Run


def scored_as(runs: list[Run], study: Study) -> Study:
    """The study with the held-out windows of its runs: an older version scored the first ones, and
    losses of the two kinds are never compared."""
    if not any(run.protocol.held_out_windows == FIRST for run in runs if not run.is_imported):
        return study
    configs = [arm.config for arm in study.arms]
    windows = [config.held_out_windows or FIRST for config in configs]
    arms = [
        dataclasses.replace(arm, config=dataclasses.replace(config, held_out_windows=each))
        for arm, config, each in zip(study.arms, configs, windows, strict=True)
    ]
    return dataclasses.replace(study, arms=tuple(arms))


def compiled_as(runs: list[Run], study: Study) -> Study:
    """The study compiled or not as its runs are, where its file does not say: what is compiled by
    default depends on the machine, the number of seeds and the version."""
    trained = [run for run in runs if not run.is_imported]
    if not trained or any(arm.config.compile is not None for arm in study.arms):
        return study
    return study.with_options(compile=trained[0].protocol.compile)


def in_order_of(runs: list[Run], configs: dict[str, RunConfig]) -> dict[str, RunConfig]:
    """The configurations with the order of the data that the study's runs have: in older ones every
    arm began at batch 0."""
    wanted = {name: config.batch_offset for name, config in configs.items()}
    if not any(wanted.get(run.arm) and not run.protocol.batch_offset for run in runs):
        return configs
    return {name: dataclasses.replace(each, batch_offset=None) for name, each in configs.items()}
