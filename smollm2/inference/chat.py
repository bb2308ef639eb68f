"""A conversation as a prompt: messages in the chat template of a model."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smollm2.errors import RunError, UserError, reason

PROGRAM = Path(__file__).with_name("render_template.py")
# Of one rendering, which takes about a tenth of a second, most of it to start Python.
MOST_SECONDS = 10
MOST_MEMORY_BYTES = 2**30
MOST_CHARACTERS = 2**22  # several times the longest context of a small model

Message = dict[str, str]  # `role` (system, user or assistant) and `content`


@dataclass(frozen=True)
class ChatTemplate:
    """How a model wants a conversation to be written.

    Args:
        text: a Jinja template, as in transformers.
        special_tokens: by the names that the template may use, such as `bos_token`.
    """

    text: str
    special_tokens: Mapping[str, str]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that the model continues with its next message; equal to that of transformers'
        `apply_chat_template` with `add_generation_prompt=True`.

        Raises:
            UserError: the template refuses the messages, is not valid, does what the sandbox denies
                or takes more than a rendering may.
            RunError: Python cannot be started.
        """
        request = {
            "template": self.text,
            "variables": {
                **self.special_tokens,
                "messages": list(messages),
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
            },
            "seconds": MOST_SECONDS,
            "memory_bytes": MOST_MEMORY_BYTES,
            "characters": MOST_CHARACTERS,
        }
        answer = rendering(json.dumps(request))
        if "refusal" in answer:
            raise UserError(f"The chat template refuses this: {_one_line(answer['refusal'])}.")
        if "reason" in answer:
            raise UserError(
                f"The chat template cannot be used: {_one_line(answer['reason'])}. Without `chat` "
                "the prompt is taken as it is, with the special tokens that it spells."
            )
        return answer["text"]


def rendering(request: str) -> dict[str, str]:
    """What the program answers to `request`, or says of it that it has been stopped."""
    words = [sys.executable, "-P", str(PROGRAM)]
    try:
        done = subprocess.run(
            words,
            input=request,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"it takes more than {MOST_SECONDS} seconds"}
    except OSError as error:
        raise RunError(f"Cannot start Python to render a chat template: {error}.") from error
    # By the system: its limit of seconds or memory, or a crash.
    if done.returncode < 0 or "MemoryError" in done.stderr:
        return {"reason": "it takes too much time or memory"}
    if done.returncode:
        raise RunError(f"The chat template was not rendered: {done.stderr.strip()[-200:]}.")
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def _one_line(message: str) -> str:
    """A message of a template in one short, printable line, without a period."""
    return reason(ValueError(message)).rstrip(".")
