"""The card that goes with the weights of one run: that of its study, or a short one of the run."""

from pathlib import Path

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import read_finished, siblings
from smolctl.analysis.selection import study_comparison
from smolctl.analysis.study_notes import read_notes
from smolctl.command_line import command
from smolctl.report.card import Card, export_command, write_figures
from smolctl.report.document import (
    Block,
    Code,
    Table,
    bullets,
    paragraph,
    section,
)
from smolctl.report.evidence import Evidence
from smolctl.report.render.front_matter import front_matter
from smolctl.report.render.markdown import Figures, comment, heading, markdown
from smolctl.report.sections.architecture import architecture_table
from smolctl.report.sections.fine_tune import against_base
from smolctl.report.sections.training import training_table
from smolctl.report.sections.usage import TRANSFORMERS, license_line
from smollm2.errors import UserError
from smollm2.model.cost import parameters
from smollm2.runs.conditions import describe, error_of
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run


def write_card(run: Run, folder: Path, license: str | None = None) -> str:
    """Write README.md for the weights of `run`, which lie in `folder` as transformers loads them.

    It is the card of the run's study where that shows the run, with its appendix and figures beside
    it.

    Args:
        license: of the weights, before that in the file of the study.

    Returns:
        What it is, and where it is a short one why, for people.

    Raises:
        UserError: a table of the run or the file of its study cannot be read.
    """
    try:
        evidence = Evidence(comparison_with(run), exported=run, given_license=license)
        appendix = folder / "CARD_APPENDIX.md"
        card = Card(evidence, folder / "figures", folder, appendix)
        text = card.markdown
        details = card.appendix_markdown
    except UserError as error:
        text, what = short_card(run, folder, license), f"a short one: {error}"
        write_figures(filter(None, [against_base([run])]), folder / "figures")
    else:
        appendix.write_bytes(details.encode())
        write_figures([*card.sections, *card.details], card.figures)
        what = f"of study {run.study}"
    (folder / "README.md").write_bytes(text.encode())
    return what


def comparison_with(run: Run) -> Comparison:
    """The runs of its study that `run` can be compared with, itself among them.

    Raises:
        UserError: the run is not one that is compared, or it is excluded.
    """
    role = run.role
    if role is not Role.FINAL:
        raise UserError(f"no card shows a run whose role is {role!r}.")
    read_finished(run)  # its own error, not one of its siblings
    runs = [one for one in siblings(run) if one.is_finished and one.role is role]
    comparison = study_comparison(run.study, runs, like=run.name)
    if run.name not in {finished.name for finished in comparison.runs}:
        raise UserError(" ".join(note for note in comparison.excluded if run.name in note))
    return comparison


def short_card(run: Run, folder: Path = Path(), given_license: str | None = None) -> str:
    """What the run's own files say, and those of the model that it began as.

    Args:
        folder: where the card lies; its figures are in figures/ there.
        given_license: as in `write_card`.

    Raises:
        UserError: eval.csv or the file of the study cannot be read.
    """
    license = given_license or read_notes(run.study_path).license
    model = run.protocol.model
    counts = parameters(model)
    active = f", {counts.active:,} of them active per token" if model.is_moe else ""
    shown = [
        against_base([run]),
        section("Architecture", [architecture_table({run.name: model})]),
        section("Training", training_blocks(run)),
        section("Evaluation", evaluation_blocks(run)),
        section("Usage", [Code("python", TRANSFORMERS), *license_line(license)]),
        section("Limits", [bullets(LIMITS)]),
    ]
    made = (
        f"Made by `{export_command(run, given_license)}`. Every number follows from the "
        "files of the run, which are not here."
    )
    what = (
        "A small language model: a decoder-only transformer "
        f"({'Mixtral' if model.is_moe else 'Llama'} architecture) with {counts.total:,} parameters"
        f"{active}."
    )
    matter = front_matter([run], license=license, is_for_transformers=True)
    return (
        f"---\n{matter}\n---\n\n{comment(made)}\n\n{heading(run.name, 1)}\n\n{what}\n\n"
        f"{markdown(filter(None, shown), Figures(folder / 'figures', folder))}"
    )


def training_blocks(run: Run) -> list[Block]:
    """How the run was trained, if smolctl trained it."""
    protocol = run.protocol
    if protocol.data is None:
        return [paragraph("Not by smolctl, which knows nothing about it.")]
    blocks: list[Block] = [training_table({run.name: (protocol, [protocol.seed])})]
    if start := run.manifest["started_from"]:
        began = f", which began as `{run.origin}`" if run.origin not in (None, start) else ""
        blocks.append(paragraph(f"It started from the weights of `{start}`{began}."))
    return blocks


def evaluation_blocks(run: Run) -> list[Block]:
    """The scores of the run, or the command that measures them."""
    scores = scores_table(run)
    if not scores.rows:
        # Without the results directory, which is a folder of this machine.
        return [paragraph(f"Not measured: `{command('eval', run.name, study=run.study)}`.")]
    note = (
        "The standard errors are over documents or questions and do not contain the noise between "
        "trainings. Scores with one fingerprint are of the same text or questions."
    )
    return [scores, paragraph(note)]


def scores_table(run: Run) -> Table:
    """Every row of eval.csv; none if there is no such file."""
    header = ("task", "metric", "value", "standard error", "scored", "of", "how", "fingerprint")
    if not (run.path / "eval.csv").exists():
        return Table("Scores", header, [])
    scores = run.table("eval").round(4)
    rows = scores.to_dict("records")
    scores["how"] = [describe(row) for row in rows]
    scores["stderr"] = [error_of(row) for row in rows]
    columns = ["task", "metric", "value", "stderr", "n", "total", "how", "fingerprint"]
    cells = scores[columns].astype(object).fillna("–").astype(str)
    return Table("Scores", header, list(cells.itertuples(index=False, name=None)), n_words=2)


LIMITS = (
    "One run says nothing about its architecture: the same model with another seed ends elsewhere. "
    "`smolctl study FILE.toml` trains arms with several seeds each; `smolctl compare` judges them.",
    "For experiments, not for production.",
)
