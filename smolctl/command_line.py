"""Commands that messages and reports print, as they can be pasted into a shell."""

import os
import re
import shlex
from pathlib import Path

from smolctl.printable import UNPRINTABLE
from smollm2.files import absolute
from smollm2.runs.run import Run

RESULTS = Path("results")  # directory of all studies, unless another is named
STUDY = "runs"  # study of runs that belong to no study file


def command(*words: str, study: str = STUDY, results: Path = RESULTS) -> str:
    """The line that runs `smolctl` with these words, quoted where a shell needs it; --study and
    --results come last, unless they are the defaults."""
    where = [] if study == STUDY else ["--study", study]
    if absolute(results) != absolute(RESULTS):
        where += ["--results", short_path(results)]
    return " ".join(map(quoted, ("smolctl", *words, *where)))


def resume_command(run: Run) -> str:
    """The command that continues a run, with --study and --results if they are not the defaults."""
    return command("train", "--resume", run.name, study=run.study, results=results_of(run))


def results_of(run: Run) -> Path:
    """The results directory of a run."""
    return absolute(run.home).parent.parent


def short_path(path: Path) -> str:
    """`path` as seen from the current folder; whole if only the root is above both."""
    whole, here = absolute(path), absolute(Path())
    try:
        above = os.path.commonpath([whole, here])
    except ValueError:  # two drives of Windows
        return str(whole)
    return str(whole) if above == os.path.dirname(above) else os.path.relpath(whole, here)


def quoted(word: str) -> str:
    """`word` as a shell reads it; what a terminal cannot show by its bytes, as bash reads them."""
    if not UNPRINTABLE.search(word):
        return shlex.quote(word)
    text = re.sub(r"[\\']", r"\\\g<0>", word)
    return f"$'{UNPRINTABLE.sub(_bytes, text)}'"


def _bytes(match: re.Match[str]) -> str:
    # Python keeps a byte of a file name that is not UTF-8 as one of these.
    errors = "surrogateescape" if "\udc80" <= match[0] <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode(errors=errors))
