"""A model that was trained elsewhere -> a finished run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from smollm2.data import Bounds
from smollm2.errors import RunError
from smollm2.files import write_json
from smollm2.model.config import ModelConfig
from smollm2.model.cost import scale_of
from smollm2.protocol.recipe import RECIPES
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.checkpoints import Checkpoints
from smollm2.runs.create import new_directory
from smollm2.runs.manifest import Role, RunState, new_manifest, now
from smollm2.runs.names import run_path
from smollm2.runs.run import Run
from smollm2.runs.text_settings import write_text_settings

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor


@dataclass(frozen=True)
class Source(ABC):
    """A model on disk; all but its weights and its tokenizer have been read.

    Args:
        name: what a manifest calls it: `hf:ORG/NAME`, or `./NAME` without the machine's path.
        settings: of text, as `read_text_settings` gives them.
    """

    layout: ClassVar[str]  # as `smolctl export --to` calls it

    name: str
    config: ModelConfig
    bounds: Bounds
    settings: dict[str, bytes]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all files that are read."""

    @property
    def grid(self) -> str | None:
        """The type in which its matrices were quantized, such as Q4_1; None if they were not."""
        return None

    @property
    def older_fingerprint(self) -> str | None:
        """The fingerprint by versions that did not keep the settings of text, if there are any."""
        return None

    @abstractmethod
    def read_state(self) -> "dict[str, Tensor]":
        """The weights as `SmolLM2.load_state_dict` takes them, in float32, bfloat16 or float16.

        Raises:
            UserError: a file is damaged, a weight is not finite, or a tensor is missing,
                unexpected, or of another shape or dtype.
        """

    @abstractmethod
    def read_tokenizer(self) -> "Tokenizer":
        """The tokenizer of the model.

        Raises:
            UserError: it is damaged, unsupported, or has tokens that the model does not embed.
        """

    @abstractmethod
    def tokenizer_json(self) -> bytes:
        """The tokenizer's file for the run, which `read_tokenizer` has checked."""


def import_run(results: Path, study: str, name: str, source: Source) -> Run:
    """Make a finished run of the model, with role `imported`; a failure leaves nothing behind.

    Its protocol has the architecture but no data: nothing is known about the training.

    Raises:
        UserError: as `Source.read_state` and `Source.read_tokenizer`, or the run cannot be created.
        RunError: the disk is full.
    """
    from smollm2.data import tokenizer_fingerprint
    from smollm2.device import resolve_device

    path = run_path(results, study, name)
    tokenizer, state = source.read_tokenizer(), source.read_state()
    dtype = dtype_name(state["embed.weight"].dtype)
    protocol = ResolvedConfig(
        variant=name,
        scale=scale_of(source.config),
        model=source.config,
        recipe=RECIPES["smollm2"],
        steps=0,
        micro_batch_size=4,
        seq_len=min(2048, source.config.max_seq_len),
        validation_every=1,
        validation_tokens=0,
        test_tokens=0,
        seed=0,
        data_seed=0,
        device=resolve_device(None),
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        compile=False,
    )
    labels = {"arm": name, "role": Role.IMPORTED, "equal": "tokens", "started_from": None}
    manifest = new_manifest(name, None, protocol, **labels) | {
        "state": RunState.FINISHED,
        "finished_at": now(),
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "dtype": dtype,
            "grid": source.grid,
            "bos_token_id": source.bounds.begin,
            "eos_token_id": list(source.bounds.ends),
            "pad_token_id": source.bounds.pad,
        },
    }
    with new_directory(path) as folder:
        write_json(folder / "run.json", manifest)
        (folder / "tokenizer.json").write_bytes(source.tokenizer_json())
        write_text_settings(folder, source.settings)
        try:
            weights = {f"model.{key}": tensor for key, tensor in state.items()}
            Checkpoints(folder / "checkpoints", ()).save(weights, 0, 0.0, is_final=True)
        except RunError as error:  # its message has the temporary folder's name
            raise RunError(f"Cannot import run {name!r}: {error.__cause__}.") from error
    return Run(path)


def adopt(run: Run, source: Source) -> None:
    """Give a run that an older version imported from the same files what it did not keep.

    Raises:
        UserError: another process is writing the run.
    """
    with run.writing():
        write_text_settings(run.path, source.settings)
        facts = {"fingerprint": source.fingerprint, "pad_token_id": source.bounds.pad}
        run.update(source=run.manifest["source"] | facts)


def dtype_name(dtype: "torch.dtype") -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
