"""What `smolctl quantize` prints: the rows of the call, what follows from all rows, the figure."""

import dataclasses
from pathlib import Path
from typing import Any

from smolctl.analysis.quantized_arms import Quantized
from smolctl.analysis.quantized_ranks import Ranking
from smolctl.analysis.selection import compare_arms, only
from smolctl.cli.console import print_json, print_lines, print_table, say, warn
from smolctl.cli.terminal import show_sections
from smolctl.command_line import command, short_path
from smolctl.report.card import write_figures
from smolctl.report.document import Section, Table, sentences_of
from smolctl.report.evidence import Evidence
from smolctl.report.render.json import as_json as in_json
from smolctl.report.sections import sections
from smolctl.report.sections.measured_rows import measured_table, ranked, recommendation
from smolctl.report.sections.quantization import conclusion
from smolctl.report.sections.quantization_tables import quantized_tasks_table
from smolctl.report.sections.widths import dimensions_section
from smolctl.report.wording import briefly, names_text
from smolctl.studies.quantizer import reasons
from smollm2.model.config import VARIANTS, variant
from smollm2.protocol.run_config import plain_name
from smollm2.quantize.dimensions import dimension_rows
from smollm2.quantize.store import quantized_names
from smollm2.runs.names import LONGEST_NAME
from smollm2.runs.run import Run


def show_runs(
    runs: list[Run],
    rows: list[dict[str, Any]],
    results: Path,
    study: str,
    max_kl: float,
    as_json: bool,
    *,
    is_whole: bool = True,
) -> None:
    """Print the rows that were measured now and what follows from all of quantize.csv, and write
    the figures of that; as JSON, with the section of a report. What to type next is said if all was
    measured.

    Args:
        rows: of quantize.csv, with `study` and `run`, the names of both.
        max_kl: nats/token, within which a configuration is recommended.
    """
    rankings = {(run.study, run.name): Ranking(run, max_kl) for run in runs}
    rows = [ranked(row, rankings[row["study"], row["run"]]) for row in rows]
    found = [(evidence, sections_of(evidence)) for evidence in quantized_evidence(runs, study)]
    if as_json:
        all_shown = [section for _, shown in found for section in shown]
        taken = {name: ranking.recommended for (_, name), ranking in rankings.items()}
        print_json(
            {
                "rows": rows,
                "max_kl": max_kl,
                "recommended": {name: one and one.name for name, one in taken.items()},
                "conclusion": sentences_of(all_shown),
                "sections": in_json(all_shown),
            }
        )
        return
    show_table(measured_table(rows))
    names = {row["name"] for row in rows}
    for evidence, _ in found:
        show_table(tasks_of(evidence.quantized, names))
    sentences = [recommendation(ranking) for ranking in rankings.values()]
    print_lines(f"- {sentence}" for sentence in [*filter(None, sentences), *why_not_all(rows)])
    for evidence, shown in found:
        print_lines(f"- {sentence}" for sentence in conclusion(evidence.quantized))
        write_figures_of(shown, evidence, results / study / "figures")
    if not is_whole:
        return
    is_card = any(not run.is_imported for run in runs)
    if is_card:
        card = short_path(results / study / "MODEL_CARD.md")
        say(f"Next: {command('report', '--out', card, study=study, results=results)}")
    best = rankings[runs[0].study, runs[0].name].recommended
    saved = sorted(quantized_names(runs[0]), key=lambda name: best is None or name != best.name)
    for name in saved[:1]:
        words = ("generate", f"{runs[0].name}+{name}", "--prompt", "Once upon a time")
        generate = command(*words, study=study, results=results)
        say(f"{'      ' if is_card else 'Next: '}{generate}")


def show_table(table: Table) -> None:
    """Print a table that has rows."""
    if table.rows:
        print_table(table.title, table.header, table.rows, table.n_words)


def tasks_of(found: Quantized, names: set[str]) -> Table:
    """The task scores of these configurations before and after."""
    table = quantized_tasks_table(found)
    place = table.header.index("configuration")
    return dataclasses.replace(table, rows=[row for row in table.rows if row[place] in names])


def why_not_all(rows: list[dict[str, Any]]) -> list[str]:
    """What was not quantized or not measured, each reason once, with the runs if there are any
    others."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    runs_with: dict[str, list[str]] = {}
    for name, own in by_run.items():
        for sentence in reasons(own):
            runs_with.setdefault(sentence, []).append(name)
    return [
        sentence if len(by_run) == 1 else f"{names_text(names)}: {sentence}"
        for sentence, names in runs_with.items()
    ]


def quantized_evidence(runs: list[Run], study: str) -> list[Evidence]:
    """The runs as a report reads them: those of a study together, by arm; an imported run alone, as
    it is compared with no other."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if not run.is_imported:
            arms.setdefault(run.arm, []).append(run)
    together = [compare_arms(study, arms)] if arms else []
    alone = [only(run) for run in runs if run.is_imported]
    return [Evidence(comparison) for comparison in together + alone]


def sections_of(evidence: Evidence) -> list[Section]:
    """The section on quantization; what it excludes is said on stderr."""
    found = evidence.quantized
    notes = (*found.comparison.excluded, *found.excluded, *found.task_notes)
    for sentence in briefly(notes):
        warn(sentence)
    return sections(evidence, ["quantization"])


def write_figures_of(found: list[Section], evidence: Evidence, figures: Path) -> None:
    """Write the figures of sections to a folder named after the arms."""
    name = plain_name("-vs-".join(evidence.quantized.arms))[:LONGEST_NAME]
    for path in write_figures(found, figures / name).values():
        say(f"Figure: {path}")


def show_dimensions(variants: list[str] | None, scale: str, as_json: bool) -> None:
    """Which groups and kernels fit the weights of variants, by default of all."""
    configs = {spec: variant(spec, scale) for spec in variants or VARIANTS}
    if as_json:
        print_json(
            [
                {"variant": spec} | row
                for spec, config in configs.items()
                for row in dimension_rows(config)
            ]
        )
        return
    shown = dimensions_section(configs, each=bool(variants))
    show_sections([shown] if shown else [])
