"""What every figure has in common: style, colours, titles and legends.

The same input gives the same bytes. pyplot and the global settings stay untouched, and a user's
matplotlibrc changes nothing.
"""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib import style
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from smolctl.analysis.comparison import Arm
from smolctl.report.wording import runs_text
from smollm2.files import make_folder, replace_file

# Okabe and Ito's colours, which any colour vision tells apart; in grey, line and marker do.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#F0E442",
)  # fmt: skip
LINES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#777777"
DPI = 150
WIDTH = 9.0  # inches
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=LINES, marker=MARKERS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.unicode_minus": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "text.parse_math": False,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The style of a figure. A character that the font lacks is drawn as a box, without a word."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


styled = drawing()  # decorates what draws or writes a figure


Looks = Mapping[str, dict[str, Any]]  # by the name of an arm

# A run's test loss: hollow, so that runs that lie on one another are still seen.
HOLLOW: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markeredgewidth": 1.2}


@styled
def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG that does not name the version of matplotlib; its folder is made if needed."""
    image = io.BytesIO()
    figure.set_dpi(DPI)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)  # `savefig` would draw everything twice for it
        figure.set_layout_engine(None)
    figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    make_folder(path.parent)
    replace_file(path, image.getvalue())
    return path


def titled(text: str, height: float) -> Figure:
    """An empty figure of the page's width; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    head(figure, text, 88)
    return figure


def head(figure: FigureBase, text: str, width: int) -> None:
    """The title, in lines of `width` characters."""
    figure.suptitle(textwrap.fill(text, width, break_on_hyphens=False), x=0.01, ha="left")


def looks(arms: Iterable[Arm]) -> Iterator[tuple[Arm, dict[str, Any]]]:
    """Every arm with its colour, line style and marker; there are eight."""
    return zip(arms, mpl.rcParams["axes.prop_cycle"](), strict=False)


def looks_of(arms: Iterable[Arm]) -> Looks:
    """The look of each name."""
    names = {arm.name: arm for arm in arms}
    return {arm.name: look for arm, look in looks(names.values())}


def arm_label(arm: Arm) -> str:
    """Name and number of runs, on several lines where the name is long."""
    return textwrap.fill(f"{arm.name} ({runs_text(len(arm.runs))})", 28)


def key(figure: Figure, *handles: Line2D | Patch) -> None:
    """A legend below the panels, with as many columns as fit."""
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    columns = min(len(handles), 100 // (longest + 4))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
