"""`smolctl report`: the model card, from the files of a study."""

from typing import TYPE_CHECKING, Any

from smolctl.options import RESULTS, STUDY, Results, Study

if TYPE_CHECKING:
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl report > MODEL_CARD.md`

- `smolctl report --study demo`
"""


def report(study: Study = STUDY, results: Results = RESULTS) -> None:
    """Write the model card of a study on stdout; what was not measured is said to be so."""
    import sys

    import jinja2

    from smolctl.targets import finished_runs
    from smollm2 import __version__

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smolctl", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [facts_of(run) for run in finished_runs(results, study)]
    card = environment.get_template("model_card.md.jinja")
    sys.stdout.write(card.render(study=study, version=__version__, runs=runs) + "\n")


def facts_of(run: "Run") -> dict[str, Any]:
    """The cells of one run in the card."""
    test = run.test_scores()
    protocol = run.protocol
    return {
        "name": run.name,
        "variant": protocol.variant,
        "scale": protocol.scale,
        "model": protocol.model,
        "parameters": run.manifest["parameters"]["total"],
        "tokens": protocol.steps * protocol.tokens_per_step,
        "data": protocol.data and protocol.data.source,
        "seed": protocol.seed,
        "loss": test["loss"],
        "accuracy": test["accuracy"],
        "bits_per_byte": test["bits_per_byte"],
    }
