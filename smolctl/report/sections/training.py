"""How the arms were trained."""

from smolctl.analysis.comparison import Comparison
from smolctl.report.document import Block, Section, Table
from smolctl.report.evidence import Evidence
from smolctl.report.sections.per_study import per_study
from smolctl.report.wording import seeds_text
from smollm2.data import epochs
from smollm2.protocol.run_config import ResolvedConfig

ROWS = (
    *("corpus", "trained on", "steps", "sequence length", "optimizer and schedule"),
    *("peak learning rate", "precision", "seeds", "test loss on"),
)


def training_section(evidence: Evidence) -> Section | None:
    """The protocol of each arm, for every study."""

    def blocks(study: Comparison) -> list[Block | None]:
        return [training_table({arm.name: (arm.protocol, arm.seeds) for arm in study.arms})]

    return per_study(evidence, "Training", blocks)


def training_table(trained: dict[str, tuple[ResolvedConfig, list[int]]]) -> Table:
    """A column per arm or run: its protocol, and its seeds."""
    columns = [column(protocol, seeds_text(seeds)) for protocol, seeds in trained.values()]
    return Table("Protocol", ("", *trained), list(zip(ROWS, *columns, strict=True)))


def column(protocol: ResolvedConfig, seeds: str) -> list[str]:
    """What `ROWS` names, of runs with this protocol."""
    recipe, data = protocol.recipe, protocol.data
    assert data is not None
    tokens = protocol.steps * protocol.tokens_per_step
    repeats = epochs(data.train_tokens, protocol.seq_len, tokens)
    return [
        f"{data.source}, {data.train_tokens:,} training tokens",
        f"{tokens:,} tokens, {repeats:.3g} times the corpus",
        f"{protocol.steps:,} of {protocol.tokens_per_step:,} tokens",
        str(protocol.seq_len),
        f"{recipe.optimizer}, {recipe.schedule}",
        " and ".join(f"{rate:g}" for rate in recipe.rates.values()),
        protocol.dtype,
        seeds,
        f"{protocol.test_tokens:,} held-out tokens",
    ]
