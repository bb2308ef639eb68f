"""What a model of transformers brings along for its text: settings of the tokenizer, special
tokens, chat template and generation settings.

smolctl uses none of them. A run keeps the files as they are, in its folder `transformers`, and so
do the runs that start from it; an export writes them again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm2.errors import UserError
from smollm2.files import replace_file
from smollm2.parse import MAX_JSON, Unreadable, parse_json, read_file, read_json
from smollm2.runs.run import Run

FOLDER = "transformers"  # in a run
TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
FILES = (TOKENIZER, "special_tokens_map.json", "generation_config.json", TEMPLATE)
MAX_TEMPLATE = 2**20  # bytes


def read_text_settings(folder: Path) -> dict[str, bytes]:
    """Those of `FILES` that a folder holds, by name.

    Raises:
        UserError: one is damaged.
    """
    found = {}
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            if name != TEMPLATE:
                read_json(path)
            found[name] = read_file(path, MAX_TEMPLATE if name == TEMPLATE else MAX_JSON)
            found[name].decode()
        except Unreadable as error:
            raise UserError(f"{name} cannot be read: {error.reason}.") from None
        except UnicodeDecodeError:
            raise UserError(f"{name} cannot be read: it is not UTF-8 text.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{name} cannot be read: {error!s:.200}.") from None
    return found


def text_settings_of(run: Run) -> dict[str, bytes]:
    """The files that a run keeps.

    Raises:
        UserError: one is damaged, or a link, which may lead to any file.
    """
    folder = run.path / FOLDER
    for path in (folder, *(folder / name for name in FILES)):
        if path.is_symlink():
            raise UserError(
                f"{path.name} of run {run.name!r} is a link; put the file itself there."
            )
    return read_text_settings(folder)


def write_text_settings(run: Path, files: Mapping[str, bytes]) -> None:
    """Keep the files in the folder of a run."""
    for name, content in files.items():
        (run / FOLDER).mkdir(exist_ok=True)
        replace_file(run / FOLDER / name, content)


def chat_template(files: Mapping[str, bytes]) -> str | list[dict[str, str]] | None:
    """The chat template among the files, or several with their names; None if there is none."""
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    found: Any = parse_json(files.get(TOKENIZER, b"{}")).get("chat_template")
    if isinstance(found, str):
        return found
    if not isinstance(found, list):
        return None
    return [
        {"name": one["name"], "template": one["template"]}
        for one in found
        if isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
    ]
