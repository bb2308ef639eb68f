"""The card that goes with the weights of one run: that of its study, or a short one of the run."""

import dataclasses
from pathlib import Path

from smolctl.card import (
    TRAINING,
    Figures,
    architecture_table,
    render,
    study_comparison,
    templates,
    training_column,
    write_figures,
)
from smolctl.comparison import Comparison
from smolctl.evidence import Evidence
from smolctl.facts import read_facts, siblings
from smolctl.tables import Table
from smollm2.cost import parameters
from smollm2.errors import UserError
from smollm2.runs import Run


def write_card(run: Run, folder: Path) -> str:
    """Write README.md for the weights of `run`, which lie in `folder` as transformers loads them.

    It is the card of the run's study where that shows the run, with its figures beside it.

    Returns:
        What it is, and where it is a short one why, for people.

    Raises:
        UserError: a table of the run cannot be read.
    """
    try:
        evidence = Evidence(comparison_with(run))
        card = render(
            evidence, Figures(folder / "figures", folder), f"--study {run.study}", exported=run
        )
    except UserError as error:
        card, what = short_card(run), f"a short one: {error}"
    else:
        write_figures(evidence, folder / "figures")
        what = f"of study {run.study}"
    (folder / "README.md").write_bytes(card.encode())
    return what


def comparison_with(run: Run) -> Comparison:
    """The runs of its study that `run` can be compared with, itself among them.

    Raises:
        UserError: it is no run that is compared, or left out.
    """
    role = run.manifest["role"]
    if role != "final":
        raise UserError(f"no card shows a run whose role is {role!r}.")
    read_facts(run)  # what is wrong with it, and not with the others, is said
    runs = [one for one in siblings(run) if one.is_finished and one.manifest["role"] == role]
    comparison = study_comparison(run.study, runs, like=run.name)
    if run.name not in {facts.name for facts in comparison.runs}:
        raise UserError(" ".join(note for note in comparison.left_out if run.name in note))
    return comparison


def short_card(run: Run) -> str:
    """What the run's own files say.

    Raises:
        UserError: eval.csv cannot be read.
    """
    from huggingface_hub import ModelCardData

    model, is_ours = run.protocol.model, run.protocol.data is not None
    front_matter = ModelCardData(
        license="apache-2.0" if is_ours and not run.origin else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["smolctl", "small-language-model"],
    )
    return (
        templates()
        .get_template("run_card.md.jinja")
        .render(
            front_matter=front_matter.to_yaml(),
            run=run,
            model=model,
            parameters=dataclasses.asdict(parameters(model)),
            architecture=architecture_table({run.name: model}),
            training=training_table(run) if is_ours else None,
            scores=scores_table(run),
        )
    )


def training_table(run: Run) -> Table:
    """How the run was trained."""
    column = training_column(run.protocol, str(run.protocol.seed))
    return Table("Training", ("", run.name), list(zip(TRAINING, column, strict=True)))


def scores_table(run: Run) -> Table:
    """Every row of eval.csv; none if there is no such file."""
    columns = ("task", "metric", "value", "stderr", "n", "total", "protocol", "fingerprint")
    header = ("task", "metric", "value", "standard error", "scored", "of", "how", "fingerprint")
    if not (run.path / "eval.csv").exists():
        return Table("Scores", header, [])
    cells = run.table("eval")[list(columns)].round(4).astype(object).fillna("–").astype(str)
    return Table("Scores", header, list(cells.itertuples(index=False, name=None)), n_words=2)
