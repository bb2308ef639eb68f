"""Questions to score."""

from pathlib import Path

import pytest
from support.questions import ROWS, write


@pytest.fixture
def questions(tmp_path) -> Path:
    """A folder with 12 questions of piqa and of openbookqa."""
    folder = tmp_path / "questions"
    folder.mkdir()
    piqa = [ROWS["piqa"] | {"goal": f"dry cup {i} " * (i + 1), "label": i % 2} for i in range(12)]
    openbookqa = [ROWS["openbookqa"] | {"question_stem": f"Ice {i} is"} for i in range(12)]
    write(folder, "piqa_validation.jsonl", piqa)
    write(folder, "openbookqa_test.jsonl", openbookqa)
    return folder
