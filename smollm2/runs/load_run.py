"""The trained model of a run and its tokenizer."""

from typing import TYPE_CHECKING

from smollm2.errors import UserError
from smollm2.runs.checkpoints import Checkpoint
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from smollm2.data import Bounds
    from smollm2.model.transformer import SmolLM2


def load_run_tokenizer(run: Run) -> "Tokenizer":
    """The tokenizer that the run was trained with.

    Raises:
        UserError: its file is missing, damaged or another one.
    """
    from smollm2.data import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(str(run.path / "tokenizer.json"))
    wanted = run.tokenizer_fingerprint
    if wanted and tokenizer_fingerprint(tokenizer) != wanted:
        raise UserError(
            f"tokenizer.json of run {run.name!r} is not the tokenizer it was trained with "
            f"(fingerprint {wanted}); put the right one back."
        )
    return tokenizer


def text_bounds(run: Run, tokenizer: "Tokenizer") -> "Bounds":
    """The tokens that begin, end and pad a text of the run's model. An imported model brings its
    own, which a run that starts from it keeps.

    Raises:
        UserError: the tokenizer of a run trained here from new weights has no token that ends a
            document.
    """
    from smollm2.data import document_bounds

    return brought_bounds(run) or document_bounds(tokenizer)


def brought_bounds(run: Run) -> "Bounds | None":
    """The bounds that an imported model brought, to its run or to one that descends from it.

    Raises:
        UserError: run.json has something other than the numbers of tokens there.
    """
    from smollm2.data import Bounds

    values = run.manifest["source"] if run.is_imported else run.manifest.get("bounds")
    if values is None:
        return None
    try:
        numbers = (values["bos_token_id"], *values["eos_token_id"], values.get("pad_token_id"))
        if any(type(number) not in (int, type(None)) for number in numbers):
            raise TypeError
        return Bounds(numbers[0], numbers[1:-1], numbers[-1])
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"run.json of run {run.name!r} is damaged: its tokens that begin and end a text are "
            "not numbers."
        ) from None


def stop_tokens(run: Run, tokenizer: "Tokenizer") -> tuple[int, ...]:
    """The tokens that end a generated text: those of `text_bounds`, and for a run trained here also
    the one that ended every document it was trained on.

    Raises:
        UserError: as `text_bounds`.
    """
    from smollm2.data import end_of_text_id

    ends = text_bounds(run, tokenizer).ends
    return ends if run.is_imported else tuple({*ends, end_of_text_id(tokenizer)})


def final_weights(run: Run) -> Checkpoint:
    """The verified checkpoint that training ended with.

    Raises:
        UserError: it is missing or damaged.
    """
    run.require_unpacked()
    final = run.checkpoints.final()
    if final is None:
        raise UserError(
            f"Run {run.name!r} has no weights (checkpoints/final.safetensors); train it again "
            "under another `name`."
        )
    return final


def load_model(run: Run, device: str, dtype: str, final: Checkpoint | None = None) -> "SmolLM2":
    """The trained model of a finished run, in evaluation mode.

    Args:
        final: its `final_weights`, if they have been verified already.

    Raises:
        UserError: its final weights are missing, damaged, not finite or of another architecture.
    """
    from smollm2.device import DTYPES
    from smollm2.model.transformer import SmolLM2

    tensors = (final or final_weights(run)).tensors()
    weights = {key.removeprefix("model."): value for key, value in tensors.items()}
    config = run.protocol.model
    try:
        if len({key.split(".")[1] for key in weights if key.startswith("blocks.")}) != (
            config.n_layers
        ):
            raise RuntimeError("another number of layers")  # before all are built
        model = SmolLM2(config, seed=None)
        model.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise UserError(
            f"The weights of run {run.name!r} are not of the architecture in its run.json; copy "
            "the run here again, or train it again under another `name`."
        ) from None
    return model.to(device, DTYPES[dtype]).eval()
