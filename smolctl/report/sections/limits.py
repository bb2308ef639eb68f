"""What the numbers do not say, and what was not measured."""

from smolctl.command_line import command, results_of
from smolctl.report.document import Section, bullets, section
from smolctl.report.evidence import Evidence
from smolctl.report.sections.quality import on_text
from smolctl.report.sections.tuning import tuning_limit
from smolctl.report.wording import briefly


def limits_section(evidence: Evidence) -> Section | None:
    """The limits of the first study, then what was not measured or is excluded."""
    study = evidence.main
    sentences = [
        "A verdict holds for the corpus, the tokenizer and the lengths of training of its study.",
        on_text(study),
        "Intervals contain the noise between seeds, not the choice of corpus or recipe.",
        tuning_limit(study),
    ]
    if study.scale != "full":
        sentences.append(
            f"{study.scale.capitalize()} scale says nothing about speed, memory and quantization "
            "at full size."
        )
    return section(
        "Limits",
        [
            bullets(
                [*sentences, *not_measured(evidence), *notes(evidence), production(evidence)],
            )
        ],
    )


def not_measured(evidence: Evidence) -> list[str]:
    """What measures what is missing."""
    study = evidence.main
    results = results_of(study.runs[0].run)
    sentences = []
    if not any(one.tasks for one in evidence.studies):
        words = ("eval", *(arm.name for arm in study.arms), "--tasks", "all")
        typed = command(*words, study=study.study, results=results)
        sentences.append(f"Downstream tasks were not measured: `{typed}`.")
    if not evidence.quantized.is_measured:
        name = evidence.quantized.comparison.study
        typed = command("quantize", "--bits", "4", study=name, results=results)
        sentences.append(f"Quantization was not measured: `{typed}`.")
    if evidence.full_size is None:
        sentences.append(
            f"The widths of {study.scale} scale say nothing about those of full size: "
            "`smolctl quantize --dimensions`."
        )
    if study.others and evidence.timed is None:
        sentences.append(
            "Speed was not measured: a study of a few full-size steps on one machine measures it."
        )
    if evidence.timed is not None and not evidence.of_equal_time:
        sentences.append(
            "What the arms reach in equal time was not measured: a study at full size with "
            '`equal = "seconds"`, long enough for losses to be compared, measures it.'
        )
    return sentences


def notes(evidence: Evidence) -> list[str]:
    """Excluded runs, and tasks that cannot be shown."""
    return briefly([*evidence.notes, *evidence.quantized.task_notes])


def production(evidence: Evidence) -> str:
    """What the models are for."""
    base = evidence.main.base.runs[0]
    text = "For experiments, not for production"
    if base.run.manifest["started_from"]:
        return f"{text}."
    return (
        f"{text}: a model trained on {base.tokens:,} tokens imitates its corpus and knows nothing."
    )
