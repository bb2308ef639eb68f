"""A data set of the Hugging Face hub, streamed."""

from collections.abc import Iterator

from smollm2.data.corpus_kind import CorpusKind
from smollm2.data.hub import require_on_hub
from smollm2.errors import UserError

WITHOUT_HUB = "use a local file or folder, or `data=builtin`"


def hub_documents(source: str) -> Iterator[str]:
    """The column `text` of the data set's train split."""
    return _hub_documents(*_hub_parts(source))


def _hub_parts(source: str) -> tuple[str, str | None]:
    parts = source.removeprefix("hub:").split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise UserError(
            f"{source!r} names no data set: expected hub:ORG/NAME or hub:ORG/NAME/CONFIG, for "
            "example hub:roneneldan/TinyStories."
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _hub_documents(repo: str, config: str | None) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading from the hub needs `pip install datasets`; or {WITHOUT_HUB}."
        ) from error
    require_on_hub(repo, "dataset", WITHOUT_HUB)
    datasets.disable_progress_bars()
    try:
        for row in datasets.load_dataset(repo, config, split="train", streaming=True):
            if not isinstance(row.get("text"), str):
                raise UserError(
                    f"The hub data set {repo!r} has no text column `text`, only {', '.join(row)}; "
                    "choose another one, or another configuration: hub:ORG/NAME/CONFIG."
                )
            yield row["text"]
    except UserError:
        raise
    except Exception as error:  # of datasets, the hub, fsspec or the HTTP library: no common class
        raise UserError(
            f"Cannot read the data set {repo!r} from the hub ({type(error).__name__}: {error}). "
            f"Try hub:ORG/NAME/CONFIG with a configuration it has, or {WITHOUT_HUB}."
        ) from error


KIND = CorpusKind(
    prefix="hub:",
    spelling="hub:ORG/NAME[/CONFIG]",
    read=hub_documents,
    identity=str,  # what is prepared from it stays as it was first read
    is_unbounded=True,
)
