"""Links in the folder of a run or study, which may come from somebody else."""

import os
from collections.abc import Iterator
from pathlib import Path

from smollm2.errors import UserError

# Folders in which a library, not this package, writes, with links of its own.
FOREIGN = ("wandb",)


def require_own(folder: Path, *entries: str) -> None:
    """Raise `UserError` if a link in a folder leads out of it, so that a write or a deletion would
    too. The folder itself may be behind a link, which is the user's.

    Args:
        entries: look only at these entries and what is in them; by default at all.
    """
    home = Path(os.path.realpath(folder))
    for link in links_in([folder / entry for entry in entries or sorted(os.listdir(folder))]):
        if home not in Path(os.path.realpath(link)).parents:
            raise UserError(
                f"{link} is a link that leads out of {folder.name}, and nothing is written through "
                f"it. Replace it by what it leads to, or move all of {folder.name} there and link "
                "that."
            )


def links_in(paths: list[Path]) -> Iterator[Path]:
    """Those of some paths that are links, and the links in those that are folders, except
    `FOREIGN` ones."""
    for path in paths:
        if os.path.islink(path):
            yield path
        elif path.name not in FOREIGN:
            for parent, folders, files in os.walk(path):
                inner = (os.path.join(parent, name) for name in sorted([*folders, *files]))
                yield from (Path(one) for one in inner if os.path.islink(one))
