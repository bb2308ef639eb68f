"""How to use the models, and how to cite them."""

import json

from smolctl.command_line import command, results_of
from smolctl.report.document import Block, Code, Section, paragraph, section
from smolctl.report.evidence import Evidence

CITATION = "Architecture: SmolLM2 (Allal et al. 2025, arXiv:2502.02737)."
TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card lies, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))
"""
NEW = """import torch
from smollm2 import SmolLM2, variant

model = SmolLM2(variant({variant}, scale={scale}))
logits = model(torch.randint(0, model.config.vocab_size, (1, 32)))
"""


def usage_section(evidence: Evidence) -> Section | None:
    """From Python, by the first run of the first arm."""
    study, base = evidence.main, evidence.main.base
    blocks: list[Block] = []
    if not evidence.origin:
        # As strings of Python, which the name of a variant cannot end.
        names = {"variant": base.protocol.variant, "scale": study.scale}
        code = NEW.format(**{key: json.dumps(name) for key, name in names.items()})
        blocks.append(Code("python", code))
    else:
        run = base.runs[0].run
        generate = command("generate", run.name, study=run.study, results=results_of(run))
        blocks.append(Code("sh", f"{generate} --prompt 'Once upon a time'\n"))
    blocks += license_line(evidence.license)
    return section("Usage", [*blocks, citation(evidence)])


def transformers_usage_section(evidence: Evidence) -> Section | None:
    """Of exported weights, which lie beside the card."""
    chosen = license_line(evidence.license)
    return section("Usage", [Code("python", TRANSFORMERS), *chosen, citation(evidence)])


def license_line(name: str | None) -> list[Block]:
    """Only where somebody chose one."""
    return [] if name is None else [paragraph(f"License: {name}.")]


def citation(evidence: Evidence) -> Block:
    """What to cite: SmolLM2, or the imported model."""
    if evidence.origin:
        return paragraph(f"The weights began as `{evidence.origin}`; cite them as its authors ask.")
    return paragraph(CITATION)
