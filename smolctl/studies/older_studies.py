"""A study that an older version began goes on as it began."""

import dataclasses
from typing import Any

from smolctl.studies.study_file import Study
from smollm2.protocol.run_config import FIRST, SHUFFLED, RunConfig
from smollm2.runs.run import Run

# Of runs of older versions. Runs of two kinds are never compared.
OLDER = {"held_out_windows": FIRST, "data_order": SHUFFLED}


def as_older_runs(runs: list[Run], study: Study) -> Study:
    """The study with the held-out windows and the order of windows in an epoch that its runs have,
    where its file does not say."""
    trained = [run.protocol for run in runs if not run.is_imported]
    found = {
        name: older
        for name, older in OLDER.items()
        if any(getattr(protocol, name) == older for protocol in trained)
    }
    arms = []
    for arm in study.arms:
        unsaid: dict[str, Any] = {
            name: older for name, older in found.items() if getattr(arm.config, name) is None
        }
        arms.append(dataclasses.replace(arm, config=dataclasses.replace(arm.config, **unsaid)))
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
