"""What the models are."""

from collections.abc import Mapping

from smolctl.analysis.alike import size_changes
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.report.document import Section, Table, bullets, paragraph, section
from smolctl.report.evidence import Evidence, model_configs
from smolctl.report.sections.per_study import row_of
from smolctl.report.wording import listed
from smollm2.model.config import VARIANTS, ModelConfig, variant

FIELDS = {
    "layers": "n_layers",
    "hidden dimension (`d_model`)": "d_model",
    "MLP dimension (`d_ff`, SwiGLU)": "d_ff",
    "attention heads": "n_heads",
    "KV heads": "n_kv_heads",
    "head dimension": "head_dim",
    "experts": "n_experts",
    "active experts per token": "n_active_experts",
    "vocabulary": "vocab_size",
    "context": "max_seq_len",
    "RoPE theta": "rope_theta",
}


def architecture_section(evidence: Evidence) -> Section | None:
    """The models of the first study: layout, dimensions and sizes."""
    models = model_configs(evidence.main)
    arms = evidence.main.arms
    totals = ", ".join(f"{arm.name} {arm.parameters['total']:,}" for arm in arms)
    return section(
        "Architecture",
        [
            paragraph(f"{what_they_are(evidence)}."),
            bullets([*layout(models), f"**Parameters:** {totals}"]),
            architecture_table(models),
            sizes_table(evidence),
        ],
    )


def what_they_are(evidence: Evidence) -> str:
    """`3 small language models of the SmolLM2 family, trained from scratch ...`."""
    study = evidence.main
    count = "A small language model" if not study.others else f"{len(study.arms)} small models"
    family = "" if evidence.origin else " of the SmolLM2 family"
    started_from = study.base.runs[0].run.manifest["started_from"]
    start = "from scratch"
    if started_from:
        start = f"on from the weights of `{started_from}`"
        if evidence.origin not in (None, started_from):
            start += f", which began as `{evidence.origin}`,"
    is_scaled = study.scale == "nano" and all(has_dimensions_of_scale(arm) for arm in study.arms)
    size = " (a quarter as wide, half as deep)" if is_scaled else ""
    return f"{count}{family}, trained {start} under one protocol at {study.scale} scale{size}"


def has_dimensions_of_scale(arm: Arm) -> bool:
    """Whether an arm is as wide and as deep as a variant of ours is at its scale."""
    protocol = arm.protocol
    name = protocol.variant.partition(":")[0]
    if name not in VARIANTS:
        return False
    own, plain = protocol.model, variant(name, protocol.scale)
    return (own.d_model, own.n_layers) == (plain.d_model, plain.n_layers)


def layout(models: Mapping[str, ModelConfig]) -> list[str]:
    """What all of the models have in common."""
    mixtures = [name for name, model in models.items() if model.is_moe]
    mixtral = f"; Mixtral for {listed(mixtures)}" if mixtures else ""
    tied = "tied embeddings, " if all(m.tie_embeddings for m in models.values()) else ""
    return [
        f"**Model type:** decoder-only transformer (Llama architecture{mixtral})",
        f"**Attention:** grouped queries, rotary positions; RMSNorm, SwiGLU, {tied}no biases",
    ]


def architecture_table(models: Mapping[str, ModelConfig]) -> Table:
    """A column per model, the dimensions as rows; experts, and whether the head is tied, only where
    one model differs."""

    def cell(config: ModelConfig, field: str) -> str:
        is_idle = "experts" in field and config.n_experts == 1
        return "–" if is_idle else f"{getattr(config, field):.10g}"

    rows = [
        (label, *(cell(config, field) for config in models.values()))
        for label, field in FIELDS.items()
    ]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    if not all(config.tie_embeddings for config in models.values()):
        cells = ("tied" if config.tie_embeddings else "untied" for config in models.values())
        rows.append(("embedding and head", *cells))
    return Table("Dimensions", ("", *models), rows)


def sizes_table(evidence: Evidence) -> Table:
    """How large every arm is beside the first, here and at full size."""
    main, full_size = evidence.main, evidence.full_size
    rows = size_rows(main, main)
    if full_size is not None and full_size is not main:
        rows += size_rows(full_size, main)
    return Table(
        f"Sizes beside {main.base.name}",
        ("", *(arm.name for arm in main.arms)),
        [row for row in rows if any(cell != "–" for cell in row[2:])],
    )


def size_rows(study: Comparison, main: Comparison) -> list[tuple[str, ...]]:
    """Parameters, active ones where they are fewer, and FLOPs."""
    base = study.base
    changes = {arm.name: size_changes(base, arm) for arm in study.others}
    total, active, flops = (
        {arm: percent_more(change[i]) for arm, change in changes.items()} for i in range(3)
    )
    counts = base.parameters
    rows = [row_of("parameters", study, main, f"{counts['total']:,}", total)]
    if active != total:
        rows.append(row_of("active parameters", study, main, f"{counts['active']:,}", active))
    return [*rows, row_of("FLOPs per token", study, main, f"{base.flops_per_token:.3g}", flops)]


def percent_more(share: float) -> str:
    """`+14 %`; `equal` where that would be none."""
    return f"{100 * share:+.0f} %" if abs(share) >= 0.005 else "equal"
