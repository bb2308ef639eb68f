"""Rows of every task in the hub's columns, and files of them."""

import gzip
import json

ROWS = {
    "hellaswag": {
        "activity_label": "Baking cookies",
        "ctx_a": "A tray is shown [step] on a table.",
        "ctx_b": "the Woman",
        "endings": ["eats [substeps] one.", " opens it [title] Then bakes.", "sings", "runs"],
        "label": "1",
    },
    "arc_easy": {
        "question": "What melts ice?",
        "choices": {"text": ["heat", "cold", "dark"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
    "arc_challenge": {
        "question": "What melts ice?",
        "choices": {"text": ["heat", "cold"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "piqa": {"goal": "dry a cup", "sol1": "use a towel ", "sol2": "use milk", "label": 1},
    "winogrande": {
        "sentence": "Ann thanked Sue because _ had helped.",
        "option1": "Ann",
        "option2": "Sue",
        "answer": "2",
    },
    "openbookqa": {
        "question_stem": "Ice is",
        "choices": {"text": ["cold", "hot"], "label": ["A", "B"]},
        "answerKey": " A",
    },
}


def write(folder, name, rows):
    """A file of rows, each a dict or a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    data = "".join(line + "\n" for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder
