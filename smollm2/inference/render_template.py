"""Renders a chat template: a program, which `chat` runs in a process of its own.

A template is code of whoever published the model. It runs in jinja2's sandbox, which denies it
files and Python's insides, and in a process that can be stopped: a template may also compute
without end, or build a text that fills the memory.

Reads JSON on stdin: `template`, `variables`, and the limits `seconds`, `memory_bytes` and
`characters`. Writes JSON: the `text`, or `refusal`, what the template says itself, or `reason`, why
it cannot be rendered.
"""

import contextlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2  # torch depends on it
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


class Refusal(jinja2.TemplateError):
    """What a template says with `raise_exception`."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the text of the assistant for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _main() -> None:
    request = json.load(sys.stdin)
    _limit(request["seconds"], request["memory_bytes"])
    answer: dict[str, str]
    try:
        template, variables = request["template"], request["variables"]
        answer = {"text": _rendered(template, variables, request["characters"])}
    except Refusal as error:
        answer = {"refusal": str(error) or "it does not say why"}
    except jinja2.TemplateSyntaxError as error:
        answer = {"reason": f"line {error.lineno}: {error.message}"}
    except jinja2.TemplateNotFound as error:
        answer = {"reason": f"it reads another file, {error.name}"}
    except MemoryError:
        answer = {"reason": "it takes too much memory"}
    except Exception as error:  # whatever the template's own computation raises
        answer = {"reason": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


def _limit(seconds: int, memory_bytes: int) -> None:
    """Let the system stop this process, also where its parent has died."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory_bytes)):
        # macOS refuses the second; the limit of an administrator may be lower.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _rendered(template: str, variables: dict[str, Any], most_characters: int) -> str:
    """The text, as transformers renders it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, GenerationTag],
        loader=jinja2.FunctionLoader(lambda name: None),  # there is no other file
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_refuse,
        strftime_now=lambda format: datetime.now().strftime(format),
        dict=lambda *args, **fields: dict(*args, **fields),  # not the class, which has methods
    )
    pieces, length = [], 0
    for piece in environment.from_string(template).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > most_characters:
            raise ValueError(f"it writes more than {most_characters:,} characters")
    return "".join(pieces)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes characters of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise Refusal(message)


if __name__ == "__main__":
    _main()
