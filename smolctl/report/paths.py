"""How a page names files: as seen from where it lies, and never by folders of the machine."""

import os
from pathlib import Path

from smollm2.errors import UserError


def relative(path: Path, start: Path = Path()) -> str:
    """`path` as seen from the folder `start`, with slashes.

    Raises:
        UserError: only the root is above both, so that the way would name the machine's folders.
    """
    whole, begin = os.path.abspath(path), os.path.abspath(start)
    try:
        above = os.path.commonpath([whole, begin])
    except ValueError:  # two drives of Windows
        above = None
    if above is None or (above == os.path.dirname(above) != begin):
        raise UserError(
            f"The card would have to name folders of this machine to link {path}; go to a folder "
            "above it, and give it from there."
        )
    return Path(os.path.relpath(whole, begin)).as_posix()
