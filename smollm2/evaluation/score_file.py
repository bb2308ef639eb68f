"""Files of scores, a row an item or a document of a window: read, and extended batch by batch."""

import csv
import dataclasses
import functools
import gzip
import io
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from smollm2.errors import UserError
from smollm2.files import append, gzipped, replace_file

if TYPE_CHECKING:
    from smollm2.evaluation.answers import ItemScore
    from smollm2.evaluation.text import TextScore

Score = TypeVar("Score", bound="TextScore | ItemScore")
DAMAGED = (  # what reading a damaged file of scores may raise
    *(OSError, EOFError, zlib.error, csv.Error),
    *(ValueError, KeyError, TypeError, AttributeError, ArithmeticError),
)


@dataclass(frozen=True)
class ScoreFile(Generic[Score]):
    """Scores in `path` (NAME.csv.gz) and, during an evaluation, in NAME.csv."""

    path: Path
    kind: type[Score]

    @property
    def growing(self) -> Path:
        return self.path.with_suffix("")

    def read(self) -> list[Score]:
        """The saved scores in order of their keys; a half-written last line is ignored.

        Raises:
            UserError: a file is damaged.
        """
        scores: dict[tuple[int, ...], Score] = {}
        columns = converters(self.kind)
        try:
            for content in self.contents():
                for row in csv.DictReader(io.StringIO(content.decode())):
                    cells = {name: convert(row[name]) for name, convert in columns.items()}
                    score = self.kind(**cells)
                    scores[score.key] = score
        except DAMAGED as error:
            raise self.damaged(error) from None
        return [scores[key] for key in sorted(scores)]

    def contents(self) -> Iterator[bytes]:
        """The whole lines of each of the two files, the one that grows last."""
        for path, opened in ((self.path, gzip.decompress), (self.growing, bytes)):
            if path.exists():
                content = opened(path.read_bytes())
                yield content[: content.rfind(b"\n") + 1]

    def damaged(self, error: Exception) -> UserError:
        """The error for a file that cannot be read."""
        here = " or ".join(p.name for p in (self.path, self.growing) if p.exists())
        folder = self.path.resolve().parents[1]
        run = folder.name
        if folder.parent.name == "quantized":
            run = f"{folder.parents[1].name}+{run}"
        return UserError(
            f"items/{here} of run {run!r} is damaged ({error}); remove it, and its items will "
            "be scored again."
        )

    def extend(
        self,
        known: list[Score],
        batches: Iterable[list[Score]],
        on_scores: Callable[[list[Score]], None],
    ) -> list[Score]:
        """`known` and the scores of `batches`, in order. A batch is on disk before the next one is
        computed.

        Args:
            on_scores: called with `known`, then with each batch.
        """
        scores = list(known)
        on_scores(known)
        for batch in batches:
            if len(scores) == len(known):
                self.path.parent.mkdir(exist_ok=True)
                replace_file(self.growing, self._text(known))  # drops incomplete scores
            append(self.growing, self._text(batch, header=False))
            scores += batch
            on_scores(batch)
        scores.sort(key=lambda score: score.key)
        if len(scores) > len(known) or self.growing.exists():
            replace_file(self.path, gzipped(self._text(scores).encode()))
            self.growing.unlink(missing_ok=True)
        return scores

    def _text(self, scores: list[Score], header: bool = True) -> str:
        text = io.StringIO()
        names = [field.name for field in dataclasses.fields(self.kind)]
        writer = csv.DictWriter(text, [*names, *self.kind.derived], lineterminator="\n")
        if header:
            writer.writeheader()
        for score in scores:
            writer.writerow({name: to_cell(getattr(score, name)) for name in writer.fieldnames})
        return text.getvalue()


def to_cell(value: Any) -> Any:
    """A tuple as words separated by spaces; True and False as 1 and 0."""
    if isinstance(value, tuple):
        return " ".join(str(to_cell(part)) for part in value)
    return int(value) if isinstance(value, bool) else value


def converters(kind: type[Score]) -> dict[str, Callable[[str], Any]]:
    """By name of a score's field: what turns its cell into its value. Derived columns are not
    read."""
    found: dict[str, Callable[[str], Any]] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is tuple:
            found[name] = functools.partial(numbers_in, of=typing.get_args(hint)[0])
        elif typing.get_origin(hint) is not typing.ClassVar:
            found[name] = hint
    return found


def numbers_in(cell: str, of: type) -> tuple[Any, ...]:
    """The numbers of a cell as `to_cell` writes a tuple."""
    return tuple(of(float(word)) for word in cell.split())
