"""Documents that are identified by their text, as files and back from prepared tokens."""

import json
from pathlib import Path

from smollm2.data import TokenData

STORY = "The cat sat on the mat, and the hat of the cat sat on the rat. "


def stories(count: int) -> list[str]:
    return [f"Story number {i}. {STORY * (1 + i % 3)}" for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def text_of(data: TokenData, split: str) -> list[str]:
    """The documents of a split, decoded."""
    tokens = getattr(data, split)[:].tolist()
    texts, document = [], []
    for token in tokens:
        if token == data.end_of_text:
            texts.append(data.tokenizer.decode(document))
            document = []
        else:
            document.append(token)
    return [*texts, data.tokenizer.decode(document)] if document else texts
