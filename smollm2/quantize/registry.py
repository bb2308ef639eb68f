"""The quantization backends by name.

Every module of `backends` declares a `BACKEND`; a new one needs no other change. `register` adds
one from elsewhere.
"""

from smollm2.discovery import declared
from smollm2.errors import unknown
from smollm2.quantize.format import Backend, Format

DEFAULT_BACKEND = "torchao"
BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Add a backend.

    Raises:
        ValueError: its name, or the name of one of its formats, is taken.
    """
    taken = {format.name for format in all_formats()} | set(BACKENDS)
    if same := taken & {backend.name, *(format.name for format in backend.formats)}:
        raise ValueError(f"There is already a quantization called {sorted(same)[0]!r}.")
    BACKENDS[backend.name] = backend


def find_backend(name: str) -> Backend:
    """The backend with that name.

    Raises:
        UserError: there is none; the message lists them.
    """
    if name not in BACKENDS:
        raise unknown("backend", name, list(BACKENDS), field="backend")
    return BACKENDS[name]


def all_formats() -> list[Format]:
    """The formats of every backend."""
    return [format for backend in BACKENDS.values() for format in backend.formats]


def embedding_format(bits: int) -> Format | None:
    """The format of an embedding; it is the default backend's, whose rows can be looked up."""
    format = BACKENDS[DEFAULT_BACKEND].format(bits)
    return format if format is not None and format.row_devices else None


def backend_order(name: str) -> int:
    """The place of a backend in tables; names that are not registered come last."""
    names = list(BACKENDS)
    return names.index(name) if name in names else len(names)


_found = declared("smollm2.quantize.backends", "BACKEND")
for _backend in sorted(_found, key=lambda backend: backend.name != DEFAULT_BACKEND):
    register(_backend)
