"""What a model of transformers brings along for its text: settings of the tokenizer, special
tokens, chat template and generation settings.

A run keeps the files as they are, in its folder `transformers`, and so do the runs that start from
it; an export writes them again. A chat uses the template and the special tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm2.errors import UserError, first_few
from smollm2.files import replace_file
from smollm2.parse import MAX_JSON, Unreadable, parse_json, read_file, read_json
from smollm2.runs.run import Run

FOLDER = "transformers"  # in a run
TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens_map.json"
FILES = (TOKENIZER, SPECIAL_TOKENS, "generation_config.json", TEMPLATE)
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


def default_template(files: Mapping[str, bytes]) -> str | None:
    """The template of a chat without tools; None if there is none.

    Raises:
        UserError: there are several, and none is called `default`.
    """
    found = chat_template(files)
    if not isinstance(found, list):
        return found
    templates = {one["name"]: one["template"] for one in found}
    if templates and "default" not in templates:
        raise UserError(
            f"The model has the chat templates {first_few(templates)}, and none is called default."
        )
    return templates.get("default")


def special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """The special tokens that have a name, such as `eos_token`, as transformers gives them to a
    chat template."""
    settings = parse_json(files.get(TOKENIZER, b"{}"))
    named = {name: token for name, token in settings.items() if name.endswith("_token")}
    extra = settings.get("extra_special_tokens")
    named |= extra if isinstance(extra, dict) else {}
    if "added_tokens_decoder" not in settings:  # written by an older version
        named |= parse_json(files.get(SPECIAL_TOKENS, b"{}"))
    tokens = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in named.items()
    }
    return {name: token for name, token in tokens.items() if isinstance(token, str)}
