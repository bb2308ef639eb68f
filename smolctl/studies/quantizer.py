"""Quantizes a finished run and measures what that changes."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smolctl.analysis.quantization_rows import read_rows
from smolctl.studies.calibration_text import calibration_text
from smolctl.studies.models import Model, hush
from smolctl.studies.scorer import Scorer, counting
from smollm2.data import spread_windows, window_count, windows
from smollm2.device import device_name
from smollm2.errors import RunError, UserError
from smollm2.evaluation.records import EvalTarget, window_length
from smollm2.evaluation.tasks import TaskItems
from smollm2.inference.decoder import Decoder
from smollm2.model.cost import full_size, parameters
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.calibration import Moments, second_moments
from smollm2.quantize.convert import (
    NoLayerFits,
    QuantizedState,
    assemble,
    quantize,
    quantized_share,
)
from smollm2.quantize.measure import loss_change, scored_windows, sizes, speeds_in_turns
from smollm2.quantize.quant_config import BF16, VALIDATION_TOKENS, QuantConfig, row_order
from smollm2.quantize.store import save
from smollm2.runs.quantize_status import Status
from smollm2.runs.run import Run

# What the libraries raise if a kernel cannot run.
CANNOT_RUN = (RuntimeError, ValueError, NotImplementedError, AssertionError, ImportError)
SPEEDS = (
    *("prefill_tokens_per_second", "decode_tokens_per_second", "prefill_ratio", "decode_ratio"),
    *("compiled_decode_tokens_per_second", "compiled_decode_ratio"),
)
N_TIMED = 64  # tokens of prompt, and new tokens, unless the model's context is shorter


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure of each configuration.

    Args:
        n_tokens: of the validation split, in evenly spaced windows; None takes as many as the
            run's quantize.csv has, else `VALIDATION_TOKENS`.
        questions: of the tasks to score.
        speed: time decoding; only at full size, since other speeds do not carry over to it.
        compiled: also time compiled decoding.
        calibration: the text for methods that are calibrated; by default see `calibration_text`.
    """

    n_tokens: int | None = None
    questions: tuple[TaskItems, ...] = ()
    speed: bool = True
    compiled: bool = True
    calibration: str | None = None


class Quantizer:
    """Quantizes a finished run in one configuration after another.

    Args:
        device, source: as in `Scorer`. Everything is computed in bf16.

    Raises:
        UserError: as `Scorer`; or the run's quantize.csv is broken, or was measured on another
            text or number of tokens.
    """

    def __init__(
        self,
        model: Model,
        options: MeasureOptions,
        *,
        device: str | None = None,
        source: str | None = None,
    ) -> None:
        hush()
        self.run, self.options = model.run, options
        self.scorer = Scorer(model, device=device, dtype="bf16", with_text=True, source=source)
        self.is_timed = options.speed and self.run.protocol.scale == "full"
        self.n_tokens = self.sample()
        self.decoders: dict[bool, Decoder] = {}  # the original's, eager and compiled

    @property
    def untimed(self) -> str:
        """A sentence on why decoding is not timed although requested; empty if it is."""
        scale = self.run.protocol.scale
        if self.is_timed or not self.options.speed:
            return ""
        why = ""
        if scale == "small":
            size = parameters(self.run.protocol.model).non_embedding
            why = f" ({size:,} parameters besides embeddings; full size begins at {full_size():,})"
        return (
            f"{self.run.name} is not timed: the speed at {scale} scale{why} does not carry over to "
            "full size."
        )

    def sample(self) -> int:
        """The number of validation tokens in the scored windows. It is the same for every row of
        quantize.csv; otherwise neither losses nor changes would be comparable."""
        rows = read_rows(self.run)
        kept = set() if rows is None else set(rows["n"].dropna().astype(int))
        wanted = self.options.n_tokens or next(iter(kept), VALIDATION_TOKENS)
        assert self.scorer.data is not None
        texts = set() if rows is None else set(rows["fingerprint"]) - {""}
        if texts - {self.scorer.data.fingerprint}:  # only an imported run takes any text
            raise UserError(
                f"Run {self.run.name!r} was quantized on a text other than "
                f"{self.scorer.data.source}, so changes would not be comparable; give that --data, "
                "or remove its quantize.csv to start over."
            )
        self.seq_len = window_length(self.run, self.scorer.data.validation)
        n_tokens = window_count(self.scorer.data.validation, self.seq_len, wanted) * self.seq_len
        if kept - {n_tokens}:
            raise UserError(
                f"Run {self.run.name!r} was quantized on {min(kept)} validation tokens, not "
                f"{n_tokens}, so changes would not be comparable; omit --tokens, "
                "or remove its quantize.csv to start over."
            )
        return n_tokens

    def measure(self, configs: list[QuantConfig]) -> Iterator[dict[str, Any]]:
        """Yield the rows of quantize.csv, the original first, each after it has been written."""
        self.original = self.scorer.load()
        self.loss = self.score(self.scorer, self.original)
        self.calibration, self.moments = self.calibrate(configs)
        row = {"name": BF16, "bits": 16, "quantized_share": 0, "status": Status.OK}
        row |= sizes(self.original.model)
        yield self.put(row | self.losses(self.original, self.loss) | self.speeds(None))
        for config in configs:
            yield self.put(self.quantized(config))

    def quantized(self, config: QuantConfig) -> dict[str, Any]:
        """Quantize, save, load the saved model, and measure it."""
        row: dict[str, Any] = {"name": config.name, **dataclasses.asdict(config)}
        final = self.scorer.model.final
        try:
            state = quantize(self.original.model, config, self.moments)
            require_kernels(self.original.model, config, state)
        except (UserError, RunError):
            raise
        except NoLayerFits as error:
            return row | {"status": Status.NO_LAYER, "reason": first_line(error)}
        except CANNOT_RUN as error:
            return row | {"status": Status.FAILED, "reason": first_line(error)}
        calibration = self.calibration if config.is_calibrated else ()
        saved = save(self.run, final.sha256, config, state, calibration)
        scorer = self.scorer.of(Model(self.run, final, saved))
        target = scorer.load()
        row |= {
            "status": Status.OK,
            "quantized_share": quantized_share(target.model),
            "skipped": state.summary,
            **sizes(target.model, state, saved.path / "model.safetensors"),
            **self.losses(target, self.score(scorer, target)),
        }
        return row | self.speeds(target.model)

    def calibrate(self, configs: list[QuantConfig]) -> tuple[tuple[str, ...], Moments]:
        """The names of the calibration texts, and the second moments of the matrices' inputs on
        them; empty if nothing is calibrated."""
        calibrated = [config for config in configs if config.is_calibrated]
        if not calibrated:
            return (), {}
        data = self.scorer.data
        assert data is not None
        numbers = spread_windows(
            window_count(data.validation, self.seq_len), self.n_tokens // self.seq_len
        )
        judged, _ = windows(data.validation, self.seq_len, numbers)
        text = calibration_text(data, self.scorer.tokenizer, judged, self.options.calibration)
        what = f"{self.run.name} calibration on {' and '.join(text.sources)}, windows"
        with counting(what, len(text.windows)) as on_progress:
            moments = second_moments(
                self.original.model,
                text.windows,
                full=any(config.method == "gptq" for config in calibrated),
                on_progress=on_progress,
            )
        return text.sources, moments

    def score(self, scorer: Scorer, target: EvalTarget) -> dict[str, Any]:
        """Score the tasks and the validation text; returns the text's row of eval.csv."""
        questions = list(self.options.questions)
        rows = list(scorer.score(target, ["validation"], questions, self.n_tokens, spread=True))
        return next(row for row in rows[0] if row["metric"] == "loss")

    def losses(self, target: EvalTarget, loss: dict[str, Any]) -> dict[str, Any]:
        """The loss, and its change from the original's."""
        change = loss_change(
            scored_windows(self.original.tables, self.loss, self.seq_len),
            scored_windows(target.tables, loss, self.seq_len),
        )
        return {
            "loss": loss["value"],
            "loss_delta": change.value,
            "loss_delta_stderr": change.stderr,
            "n": loss["n"],
            "clusters": loss["clusters"],
            "fingerprint": loss["fingerprint"],
        }

    def speeds(self, model: SmolLM2 | None) -> dict[str, Any]:
        """Tokens per second, eager and compiled, alternating with the original; None is the
        original itself."""
        if not self.is_timed:
            return {}
        n = min(N_TIMED, self.run.protocol.model.max_seq_len // 2)
        cells: dict[str, Any] = {}
        reasons = []
        for compiled in (False, True) if self.options.compiled else (False,):
            prefix = "compiled_" if compiled else ""
            try:
                if compiled not in self.decoders:
                    self.decoders[compiled] = Decoder(self.original.model, 2 * n, compiled)
                before = self.decoders[compiled]
                after = before if model is None else Decoder(model, 2 * n, compiled)
                speed, ratio = speeds_in_turns(before, after, n)
            except CANNOT_RUN as error:
                reasons.append(f"{'compiled' if compiled else 'eager'}: {first_line(error)}")
                continue
            # Reading a prompt is never compiled.
            for name in ("decode",) if compiled else ("prefill", "decode"):
                cells[f"{prefix}{name}_tokens_per_second"] = getattr(
                    speed, f"{name}_tokens_per_second"
                )
                beside = getattr(ratio, f"{name}_tokens_per_second")
                cells[f"{prefix}{name}_ratio"] = 1.0 if model is None else beside
        return cells | {"reason": "; ".join(reasons)}

    def put(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row to quantize.csv, in the order of `row_order`, replacing one of the same name.
        A speed that is not measured
        this time is kept if it was measured on the same machine."""
        device, dtype = self.scorer.machine
        machine = {
            "device": device,
            "device_name": device_name(device),
            "threads": torch.get_num_threads(),
        }
        row |= {"dtype": dtype, **machine}
        with self.run.writing():
            rows = self.run.rows("quantize")
            for old in (old for old in rows if old["name"] == row["name"] and "loss" in row):
                if all(old.get(name) == str(value) for name, value in machine.items()):
                    row = {name: float(old[name]) for name in SPEEDS if old.get(name)} | row
            others = [old for old in rows if old["name"] != row["name"]]
            rows = sorted([*others, row], key=lambda row: row_order(row["name"]))
            self.run.replace("quantize", rows)
        return row


def require_kernels(original: SmolLM2, config: QuantConfig, state: QuantizedState) -> None:
    """Raise what the libraries raise if the quantized model cannot compute on this machine."""
    with torch.inference_mode():
        model = assemble(original.config, config, state, original.dtype)
        model(torch.zeros(1, 1, dtype=torch.long, device=original.device))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def missing(run: Run, configs: Sequence[QuantConfig]) -> list[QuantConfig]:
    """The configurations still to be measured: not in quantize.csv, or failed."""
    rows = read_rows(run)
    if rows is None:
        return list(configs)
    done = set(rows["name"][rows["status"] != Status.FAILED])
    return [config for config in configs if config.name not in done]


def row_summary(run: Run, row: dict[str, Any]) -> str:
    """`pow2-s0 int4-g64: 99.9% quantized, 96.1 MB on disk, loss +0.0123 ± 0.0004, ...`."""
    words = []
    if "loss" in row:
        words.append(f"{row['disk_bytes'] / 1e6:.1f} MB on disk")
        if row["name"] != BF16:
            words.insert(0, f"{row['quantized_share']:.1%} quantized")
            spread = row["loss_delta_stderr"]
            words.append(f"loss {row['loss_delta']:+.4f}" + (f" ± {spread:.4f}" if spread else ""))
            if row.get("skipped"):
                words.append(f"kept in bf16: {row['skipped']}")
    for prefix, how in (("", "decoding"), ("compiled_", "compiled")):
        if speed := row.get(f"{prefix}decode_tokens_per_second"):
            words.append(f"{how} {speed:.1f} tokens/s")
            if row["name"] != BF16:
                # Measured in turns with bf16: not the quotient with the line above.
                words[-1] += f" ({row[f'{prefix}decode_ratio']:.2f} × bf16 in turns)"
    if row.get("reason"):
        words.append(row["reason"])
    return f"{run.name} {row['name']}: {', '.join(words)}"
