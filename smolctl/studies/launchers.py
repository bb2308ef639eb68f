"""The launchers by name.

Every module of `smolctl.studies.launch` declares a `LAUNCHER`; a new one needs no other change.
"""

from smolctl.studies.launch_spec import LauncherSpec
from smollm2.discovery import declared
from smollm2.errors import UserError, unknown

# By name, so that nothing here depends on a single launcher.
FOLDER = "smolctl.studies.launch"
LAUNCHERS: dict[str, LauncherSpec] = {spec.name: spec for spec in declared(FOLDER, "LAUNCHER")}
LOCAL = "local"  # the one that takes a number


def find_launcher(name: str) -> LauncherSpec:
    """The launcher called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in LAUNCHERS:
        raise unknown("launcher", name, list(LAUNCHERS))
    return LAUNCHERS[name]


def launcher_of(text: str) -> tuple[LauncherSpec, int | None]:
    """The launcher that `local:4`, `slurm` or the like names, and the number of runs at once.

    Raises:
        UserError: there is no such launcher, or the number is none.
    """
    name, colon, number = text.partition(":")
    launcher = find_launcher(name)
    if not colon:
        return launcher, None
    if name != LOCAL:
        raise UserError(f"--launch {name} takes no number; give --at-once {number or 'N'}.")
    if not (number.isascii() and number.isdecimal() and int(number[:9]) > 0):
        raise UserError(f"--launch local:N takes a number of runs at once, not {number!r}.")
    return launcher, int(number)
