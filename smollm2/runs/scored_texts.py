"""The texts that a run was scored on besides its own. eval.csv knows a text by the fingerprint of
its tokens alone; `texts` in run.json says what it is."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smollm2.data import TokenData


@dataclass(frozen=True)
class ScoredText:
    """A prepared text. What two tokenizers made of one text agrees in all three fields.

    Args:
        source: the base name of its file or folder, or its name on the hub.
        documents: in each split.
        bytes: of UTF-8 text in each split.
    """

    source: str
    documents: dict[str, int]
    bytes: dict[str, int]


def scored_texts(run: Run) -> dict[str, ScoredText]:
    """The texts that are noted, by their fingerprints."""
    texts: dict[str, dict[str, Any]] = run.manifest.get("texts", {})
    return {fingerprint: ScoredText(**text) for fingerprint, text in texts.items()}


def note_scored_text(run: Run, data: "TokenData") -> None:
    """Note the text of `data`; the caller holds the run's lock.

    Raises:
        UserError: run.json cannot be read.
        OSError: it cannot be written.
    """
    text = ScoredText(data.source, dict(data.documents), dict(data.n_bytes))
    run.read()
    if scored_texts(run).get(data.fingerprint) != text:
        noted = {data.fingerprint: dataclasses.asdict(text)}
        run.update(texts=run.manifest.get("texts", {}) | noted)
