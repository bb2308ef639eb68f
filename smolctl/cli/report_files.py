"""The files that `smolctl report` reads and writes."""

import os
from collections.abc import Mapping
from pathlib import Path

from smollm2.errors import RunError, UserError
from smollm2.files import FULL, absolute, replace_file
from smollm2.leftovers import remove, temporary_of
from smollm2.runs.links import require_own

MOST_LINKS = 40  # that Linux follows
PAGES = (".md", ".html")  # what a report may write among the files of studies


def read(path: Path) -> str:
    """The text of a card.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card {path} cannot be read: {reason_of(error)}.") from None


def read_appendix(path: Path, card: Path, command: str) -> str:
    """The text of the appendix that a card links to.

    Args:
        command: what writes it.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return text_of(path)
    except FileNotFoundError:
        problem = "is missing"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({reason_of(error)})"
    raise UserError(f"The appendix {path} of {card} {problem}; write it with: {command}")


def text_of(path: Path) -> str:
    return path.read_bytes().decode().replace("\r\n", "\n")


def write(path: Path, text: str) -> None:
    """Write a file, as UTF-8 and with the same line ends everywhere.

    A file is replaced whole, also behind a link; a pipe or a device takes the text as it comes.

    Raises:
        UserError: it cannot be written.
        RunError: the disk is full.
    """
    try:
        if is_stream(path):
            with path.open("wb") as stream:
                stream.write(text.encode())
        else:
            replace_file(real(path), text)
    except OSError as error:
        raise cannot_write(path, error) from None


def require_writable(pages: Mapping[str, Path], figures: Path, results: Path) -> None:
    """Check every path before anything is written.

    Args:
        pages: what to write, by the options that name it.
        figures: the folder of the figures, which is made first.
        results: the results directory.

    Raises:
        UserError: two options name the same file, a path would overwrite a file of a study or run,
            or a path cannot be written.
    """
    folder = real(figures)
    made = (folder, *folder.parents)
    options: dict[Path, str] = {}
    for option, path in pages.items():
        whole = real(path)
        if other := options.get(whole):
            raise UserError(f"{other} and {option} name the same file, {path}; choose two names.")
        options[whole] = option
        require_own_page(path, results)
        if real(results) in whole.parents and whole.suffix.lower() not in PAGES:
            raise UserError(
                f"{path} lies with the files of the studies, where a report writes only "
                f"{' and '.join(PAGES)}; choose another {option}."
            )
        if whole in made:
            raise UserError(f"{path} is a folder for the figures; choose another {option}.")
        if whole.parent.exists() or whole.parent not in made:
            try_to_write(path)


def require_own_page(path: Path, results: Path) -> None:
    """Raise `UserError` if a page among the files of a study is behind a link that leads out of the
    study's folder."""
    whole, among = absolute(path), absolute(results)
    if among in list(whole.parents)[1:]:
        study, entry, *_ = whole.relative_to(among).parts
        require_own(among / study, entry)


def try_to_write(path: Path) -> None:
    """Open a file for writing without changing it, and make one beside it for a moment.

    Raises:
        UserError: one of these fails.
        RunError: the disk is full.
    """
    target = real(path)  # a link may lead to a file that is yet to be made
    beside = temporary_of(target)
    try:
        if is_stream(path):
            return  # its reader would see it end
        if target.exists():
            target.open("ab").close()
        beside.touch()
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        remove(beside)


def is_stream(path: Path) -> bool:
    """Whether a path leads to a pipe or a device, or to whatever a process has open, such as
    /dev/stdout."""
    steps = [Path(os.path.abspath(path))]
    while os.path.islink(steps[-1]) and len(steps) < MOST_LINKS:
        steps.append(steps[-1].parent / os.readlink(steps[-1]))
    if any(step.is_relative_to(place) for step in steps for place in ("/dev/fd", "/proc")):
        return True
    target = real(path)
    return os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target)


def cannot_write(path: Path, error: OSError) -> UserError | RunError:
    if error.errno in FULL:
        return RunError(f"Cannot write {path}: {reason_of(error)}.")
    if not os.path.isdir(path.parent):
        return UserError(f"Cannot write {path}: there is no folder {path.parent}; make it first.")
    return UserError(f"Cannot write {path}: {reason_of(error)}.")


def reason_of(error: OSError | UnicodeDecodeError) -> str:
    """What went wrong, without a number."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return error.strerror or str(error)


def real(path: Path) -> Path:
    """Where a path leads, with every link followed."""
    return Path(os.path.realpath(path))
