"""The model card of a study: its facts from the run directories, its words from a template.

A pure function of the study's directory, and of those of the further studies that it draws on: the
same files give the same bytes. Whatever was not
measured is said to be so, with the command that measures it.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from smolctl.claims import claims_table, dense_against_moe, power_of_two, power_of_two_table
from smolctl.comparison import Comparison
from smolctl.evidence import Evidence
from smolctl.facts import ACCURACY, LOSS, mean_and_spread
from smolctl.quantization import Quantized, quantized
from smolctl.quantization_tables import (
    configurations_table,
    dimensions_table,
    notes_table,
    pairs_table,
    quantized_tasks_table,
)
from smolctl.quantization_words import dimension_sentences, quantization_conclusion
from smolctl.reproduction import commands, environment_table, files_table, study_file, versions
from smolctl.selection import compare_arms, finished_at, mismatch, noted, readable
from smolctl.summary import summary_table
from smolctl.tables import (
    Table,
    arms_table,
    runs_table,
    secondary_table,
    sweep_table,
    task_differences_table,
    tasks_table,
    verdicts_table,
    views_table,
)
from smolctl.words import described, on_chance, on_text, verdict_sentences
from smollm2.config import ModelConfig
from smollm2.errors import UserError
from smollm2.protocol import Protocol
from smollm2.runs import Run

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class Figures:
    """Where the card's pictures are, as it links them from the folder it lies in."""

    folder: Path
    card: Path = Path()

    def link(self, name: str, text: str) -> str:
        """To a picture that is not shown; percent-encoded, as a space or a parenthesis would end
        the link."""
        return f"[{text}]({quote(relative(self.folder / name, self.card))})"

    def show(self, name: str, text: str) -> str:
        return f"!{self.link(name, text)}"

    def of(self, study: str) -> "Figures":
        """Those of a further study."""
        return Figures(self.folder / f"also-{study}", self.card)


def relative(path: Path, start: Path = Path()) -> str:
    """`path` as seen from the folder `start`, with slashes.

    Raises:
        UserError: only the root is above both, so that the way would name the machine's folders.
    """
    whole, begin = os.path.abspath(path), os.path.abspath(start)
    try:
        above = os.path.commonpath([whole, begin])
    except ValueError:  # two drives of Windows
        above = None
    if above is None or (above == os.path.dirname(above) != begin):
        raise UserError(
            f"The card would have to name folders of this machine to link {path}; go to a folder "
            "above it, and give it from there."
        )
    return Path(os.path.relpath(whole, begin)).as_posix()


def study_comparison(study: str, runs: list[Run], like: str | None = None) -> Comparison:
    """Every arm of a study that has the protocol of the run `like`, by default of the newest; the
    first arm is the one that began first.

    Raises:
        UserError: no run can be read, or not that one.
    """
    left_out: list[str] = []
    facts = readable(runs, left_out)
    wanted = [found for found in facts if like in (found.name, None)]
    if not wanted:
        raise UserError(f"{' '.join(left_out)} Nothing is left of study {study!r}.")
    base = max(wanted, key=finished_at)
    arms: dict[str, list[Run]] = {}
    for found in sorted(facts, key=lambda found: str(found.run.manifest["created_at"])):
        if not noted(mismatch(base, found), found, left_out):
            arms.setdefault(found.run.arm, []).append(found.run)
    comparison = compare_arms(study, arms, left_out)
    broken = quantized(comparison).left_out
    return dataclasses.replace(comparison, left_out=(*comparison.left_out, *broken))


def render(evidence: Evidence, figures: Figures, options: str, exported: Run | None = None) -> str:
    """The card as Markdown.

    Args:
        options: of the `smolctl report` command that makes it.
        exported: the run whose weights lie beside the card in the layout of transformers.
    """
    environment = templates()
    environment.filters["verdict_sentences"] = verdict_sentences
    environment.filters["described"] = described
    environment.filters["power_of_two_table"] = power_of_two_table
    comparison, found = evidence.main, evidence.quantized
    models = models_of(comparison)
    full_models = models_of(evidence.full_size) if evidence.full_size else {}
    return environment.get_template("model_card.md.jinja").render(
        versions=versions(evidence),
        options=options,
        front_matter=front_matter(comparison, exported),
        exported=exported,
        study=comparison.study,
        comparison=comparison,
        base=comparison.base,
        started_from=comparison.base.runs[0].run.manifest["started_from"],
        origin=origin_of(comparison),
        figures=figures,
        answers=evidence.answers(),
        architecture=architecture_table(models),
        training=training_table(comparison),
        secondary=secondary_table(comparison),
        sweep=sweep_table(comparison),
        arms=arms_table(comparison),
        summary=summary_table(evidence),
        verdicts=verdicts_table(comparison),
        views=views_table(comparison),
        tasks=tasks_table(comparison),
        task_differences=task_differences_table(comparison),
        on_chance=on_chance(comparison),
        runs=runs_table(comparison),
        dense_and_moe=dense_against_moe(comparison),
        powers_of_two=power_of_two(comparison),
        has_tradeoff=has_tradeoff(comparison),
        has_overview=evidence.timed_further is not None,
        on_text=on_text(comparison),
        quantized=found,
        quantization=quantization_tables(found),
        quantization_conclusion=quantization_conclusion(found),
        quantized_figures=figures_of(figures, evidence, found.comparison),
        full_size=evidence.full_size,
        dimensions=dimensions_table(full_models) if full_models else None,
        dimension_sentences=dimension_sentences(full_models),
        claims=claims_table(evidence),
        notes=evidence.notes,
        further=[further_part(study, figures.of(study.study)) for study in evidence.further],
        study_files={study.study: study_file(study) for study in evidence.studies},
        commands=[line for one in evidence.quantized_of.values() for line in commands(one)],
        environment=environment_table(evidence),
        files=files_table(evidence),
    )


def models_of(comparison: Comparison) -> dict[str, ModelConfig]:
    return {arm.name: arm.protocol.model for arm in comparison.arms}


def figures_of(figures: Figures, evidence: Evidence, study: Comparison) -> Figures:
    return figures if study is evidence.main else figures.of(study.study)


def further_part(comparison: Comparison, figures: Figures) -> dict[str, Any]:
    """What the card shows of a further study."""
    tables = [arms_table(comparison), verdicts_table(comparison), secondary_table(comparison)]
    return {
        "study": comparison.study,
        "described": described(comparison),
        "is_timed": comparison.is_timed,
        "tables": [table for table in tables if table.rows],
        "figures": figures,
    }


def templates() -> "jinja2.Environment":
    """Those of the package, which write tables by the filter `markdown`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smolctl", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown
    return environment


def markdown(table: Table) -> str:
    """A table in Markdown, its title aside; `|` in a cell is escaped."""
    sides = (":--" if i < table.n_words else "--:" for i in range(len(table.header)))
    lines = [table.header, tuple(sides)]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in [*lines, *table.rows])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def front_matter(comparison: Comparison, exported: Run | None) -> str:
    """YAML for the Hugging Face hub, with the scores of every arm as its model-index; beside
    exported weights theirs only, for the hub takes what stands there for scores of the weights."""
    from huggingface_hub import EvalResult, ModelCardData

    if exported is not None:
        comparison = only_of(comparison, exported)

    def of(arm: str, count: int) -> str:
        return f"of {exported.name}" if exported else f"of {arm}, mean of {count}"

    results = []
    for arm in comparison.arms:
        data = arm.protocol.data
        assert data is not None
        for metric, kind in ((LOSS, "loss"), (ACCURACY, "accuracy")):
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=data.source,
                    dataset_name=f"{data.source}, test split",
                    metric_type=kind,
                    metric_name=f"{metric.label} {of(arm.name, len(arm.runs))}",
                    metric_value=round(mean_and_spread(arm.values(metric))[0], 6),
                )
            )
    for row in comparison.tasks.to_dict("records"):
        extent = "" if row["n"] == row["total"] else f", first {row['n']} of {row['total']}"
        how = f"{row['protocol']}{extent}"
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=row["task"],
                dataset_name=f"{row['task']} ({how})",
                dataset_config=how,  # the hub merges what agrees in this and the type
                metric_type=row["metric"],
                metric_name=f"{row['metric']} {of(row['arm'], row['count'])}",
                metric_value=round(row["mean"], 6),
            )
        )
    card = ModelCardData(
        model_name=exported.name if exported else f"smolctl-{comparison.study}",
        eval_results=results,
        license=None if origin_of(comparison) else "apache-2.0",
        library_name="transformers" if exported else None,
        pipeline_tag="text-generation",
        tags=["smolctl", "small-language-model"],
    )
    return str(card.to_yaml())


def origin_of(comparison: Comparison) -> str | None:
    """The model from elsewhere that the weights began as; its license and authors are its own."""
    origins = (facts.run.origin for facts in comparison.runs)
    return next((origin for origin in origins if origin), None)


def only_of(comparison: Comparison, run: Run) -> Comparison:
    """One of the runs of a comparison by itself."""
    arms = (
        dataclasses.replace(arm, runs=(facts,))
        for arm in comparison.arms
        for facts in arm.runs
        if facts.name == run.name
    )
    return dataclasses.replace(comparison, arms=tuple(arms))


def architecture_table(models: dict[str, ModelConfig]) -> Table:
    """A column a model, the dimensions as rows; those of experts, and whether the head is tied,
    only where one has some, or one that is not."""
    fields = {
        "layers": "n_layers",
        "hidden dimension (`d_model`)": "d_model",
        "MLP dimension (`d_ff`, SwiGLU)": "d_ff",
        "attention heads": "n_heads",
        "KV heads": "n_kv_heads",
        "head dimension": "head_dim",
        "experts": "n_experts",
        "experts a token uses": "n_active_experts",
        "vocabulary": "vocab_size",
        "context": "max_seq_len",
        "RoPE theta": "rope_theta",
    }

    def cell(config: ModelConfig, field: str) -> str:
        is_idle = "experts" in field and config.n_experts == 1
        return "–" if is_idle else f"{getattr(config, field):.10g}"

    rows = [
        (label, *(cell(config, field) for config in models.values()))
        for label, field in fields.items()
    ]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    if not all(config.tie_embeddings for config in models.values()):
        cells = ("one matrix" if config.tie_embeddings else "two" for config in models.values())
        rows.append(("embedding and head", *cells))
    return Table("Architecture", ("", *models), rows)


def training_table(comparison: Comparison) -> Table:
    """How each arm was trained, a column an arm."""
    columns = [
        training_column(arm.protocol, ", ".join(map(str, arm.seeds))) for arm in comparison.arms
    ]
    rows = list(zip(TRAINING, *columns, strict=True))
    return Table("Training", ("", *(arm.name for arm in comparison.arms)), rows)


TRAINING = (
    *("corpus", "trained on", "steps", "sequence length", "optimizer and schedule"),
    *("peak learning rate", "precision", "seeds", "test loss on"),
)


def training_column(protocol: Protocol, seeds: str) -> list[str]:
    """What `TRAINING` names, of runs with this protocol."""
    from smollm2.data import epochs

    recipe, data = protocol.recipe, protocol.data
    assert data is not None
    tokens = protocol.steps * protocol.tokens_per_step
    repeats = epochs(data.train_tokens, protocol.seq_len, tokens)
    return [
        f"{data.source}, {data.train_tokens:,} training tokens",
        f"{tokens:,}, {repeats:.3g} times the corpus",
        f"{protocol.steps:,} of {protocol.tokens_per_step:,} tokens",
        str(protocol.seq_len),
        f"{recipe.optimizer}, {recipe.schedule}",
        " and ".join(f"{rate:g}" for rate in recipe.rates),
        protocol.dtype,
        seeds,
        f"{protocol.test_tokens:,} held-out tokens",
    ]


def has_tradeoff(comparison: Comparison) -> bool:
    """Whether the arms differ in what a token takes of the KV cache."""
    return len({arm.kv_bytes_per_token for arm in comparison.arms}) > 1


def quantization_tables(found: Quantized) -> list[Table]:
    """Those of what was measured; the ones without rows aside."""
    tables = [configurations_table(arm, by_name) for arm, by_name in found.arms.items()]
    tables += [notes_table(found.arms), pairs_table(found), quantized_tasks_table(found)]
    return [table for table in tables if table.rows]


def write_figures(evidence: Evidence, folder: Path) -> list[Path]:
    """Every picture that the card shows or links.

    Raises:
        UserError: the folder cannot be written to.
    """
    from smolctl.plots import (
        comparison_figures,
        loss_figure,
        overview_figure,
        run_figure,
        tradeoff_figure,
    )
    from smolctl.quantization_plots import quantization_figure

    comparison, found = evidence.main, evidence.quantized
    try:
        paths = comparison_figures(comparison, folder)
        if timed := evidence.timed_further:
            path = folder / "overview.png"
            controls = [one for one in evidence.controls if one.scale == comparison.scale]
            losses = [*evidence.of_quality, *controls]
            paths.append(overview_figure(losses, timed, evidence.in_time, path))
        if has_tradeoff(comparison):
            paths.append(tradeoff_figure(comparison, folder / "tradeoff.png"))
        paths += [run_figure(facts, folder / f"{facts.name}.png") for facts in comparison.runs]
        if pair := dense_against_moe(comparison):
            paths.append(loss_figure(pair, folder / "dense-moe.png"))
        for study in evidence.further:
            paths += comparison_figures(study, Figures(folder).of(study.study).folder)
        if found.is_measured:
            where = figures_of(Figures(folder), evidence, found.comparison).folder
            paths.append(quantization_figure(found, where / "quantization.png"))
    except OSError as error:
        raise UserError(
            f"Cannot write figures to {folder}: {error.strerror}; choose another --figures."
        ) from None
    return paths
