"""Quantizes a finished run and measures what that changes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from smolctl.analysis.quantization_rows import read_rows, with_error
from smolctl.studies.calibration_text import calibration_text
from smolctl.studies.models import Model, hush
from smolctl.studies.scorer import Scorer, counting
from smollm2.device import device_name
from smollm2.errors import RunError, UserError
from smollm2.evaluation.records import EvalTarget, window_length
from smollm2.evaluation.tasks import TaskItems
from smollm2.inference.decoder import Decoder
from smollm2.model.cost import full_size, parameters
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.calibration import Moments, require_moments_fit, second_moments
from smollm2.quantize.convert import (
    NoLayerFits,
    QuantizedState,
    assemble,
    quantize,
    quantized_share,
)
from smollm2.quantize.fidelity import (
    LONGEST_WINDOW,
    Fidelity,
    Original,
    Passages,
    spread_passages,
)
from smollm2.quantize.measure import sizes, speeds_in_turns
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
        n_tokens: of the validation split, in evenly spaced windows of at most `LONGEST_WINDOW`;
            None takes as many as the run's quantize.csv has, else `VALIDATION_TOKENS`.
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
        UserError: as `Scorer`; or the run's quantize.csv is broken, or was measured by an older
            version or on another text, number of tokens or window.
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
        self.passages = self.sample()
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

    def sample(self) -> Passages:
        """The scored windows of the validation split. They are the same for every row of
        quantize.csv; otherwise neither losses nor changes would be comparable."""
        assert self.scorer.data is not None
        data, rows = self.scorer.data, read_rows(self.run)
        measured = None if rows is None else rows[rows["loss"].notna()]
        kept = set() if measured is None else set(measured["n"].astype(int))
        texts = set() if rows is None else set(rows["fingerprint"]) - {""}
        if texts - {data.fingerprint}:  # only an imported run takes any text
            raise self.unlike(f"on a text other than {data.source}", "give that --data")
        if measured is not None and measured["kl_mean"].isna().any():
            raise self.unlike("by an older version, which measured the loss alone")
        seq_len = min(LONGEST_WINDOW, window_length(self.run, data.validation))
        if measured is not None and set(measured["context"]) - {seq_len}:
            raise self.unlike(f"in other windows than of {seq_len} tokens")
        n_tokens = self.options.n_tokens or next(iter(kept), VALIDATION_TOKENS)
        passages = spread_passages(data, seq_len, n_tokens)
        if kept - {passages.targets.size}:
            how = f"on {min(kept)} validation tokens, not {passages.targets.size}"
            raise self.unlike(how, "omit --tokens")
        return passages

    def unlike(self, how: str, remedy: str = "") -> UserError:
        """The error that earlier measurements were made in another way."""
        return UserError(
            f"Run {self.run.name!r} was quantized {how}, so changes would not be comparable; "
            f"{remedy and f'{remedy}, or '}remove its quantize.csv to start over."
        )

    def measure(self, configs: list[QuantConfig]) -> Iterator[dict[str, Any]]:
        """Yield the rows of quantize.csv, the original first, each after it has been written."""
        self.original = self.scorer.load()
        if any(config.method == "gptq" for config in configs):
            require_moments_fit(self.original.model)
        with self.counting_windows(self.scorer) as on_progress:
            self.reference = Original(self.original.model, self.passages, on_progress)
        self.calibration, self.moments = self.calibrate(configs)
        row = {"name": BF16, "bits": 16, "quantized_share": 0, "status": Status.OK}
        row |= sizes(self.original.model) | self.scores(self.scorer, self.original)
        yield self.put(row | self.speeds(None))
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
            "calibration": " and ".join(calibration),
            "quantized_share": quantized_share(target.model),
            "skipped": state.summary,
            **sizes(target.model, state, saved.path / "model.safetensors"),
            **self.scores(scorer, target),
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
        judged = self.passages.inputs
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

    def scores(self, scorer: Scorer, target: EvalTarget) -> dict[str, Any]:
        """The cells of how faithful a model is to the original; its tasks go to its eval.csv."""
        for _ in scorer.score(target, [], list(self.options.questions)):
            pass
        with self.counting_windows(scorer) as on_progress:
            found = self.reference.fidelity(target.model, scorer.model.label, on_progress)
        assert scorer.data is not None
        return fidelity_cells(found) | {
            "context": self.passages.targets.shape[1],
            "fingerprint": scorer.data.fingerprint,
        }

    def counting_windows(self, scorer: Scorer) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar over the passages; see `counting`."""
        return counting(f"{scorer.model.label} validation, windows", len(self.passages.targets))

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


def fidelity_cells(found: Fidelity) -> dict[str, Any]:
    """The cells of quantize.csv that `found` gives."""
    return {
        "loss": found.loss.value,
        "loss_delta": found.loss_change.value,
        "loss_delta_stderr": found.loss_change.stderr,
        "kl_mean": found.kl.value,
        "kl_mean_stderr": found.kl.stderr,
        "kl_p99": found.kl_p99,
        "top1_agreement": found.top1_agreement.value,
        "top1_agreement_stderr": found.top1_agreement.stderr,
        "n": found.n_tokens,
        "clusters": found.n_documents,
    }


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
    """The configurations still to be measured: not in quantize.csv, failed, or measured by a
    version that left layers in bf16 which fit now."""
    rows = read_rows(run)
    if rows is None:
        return list(configs)
    done = set(rows["name"][rows["status"] != Status.FAILED])
    texts = rows["skipped"].fillna("") + rows["reason"].fillna("")
    undivided = set(rows["name"][texts.str.contains("do not divide")])
    return [
        config
        for config in configs
        if config.name not in done or (config.name in undivided and config.format.short_groups)
    ]


def row_summary(run: Run, row: dict[str, Any]) -> str:
    """`pow2-s0 int4-g64: 99.9% quantized, 96.1 MB on disk, KL 0.1090 ± 0.0080, top-1 82.0%, ...`;
    `reasons` says what it leaves out."""
    if "loss" not in row:
        return f"{run.name} {row['name']}: not measured"
    words = [f"{row['disk_bytes'] / 1e6:.1f} MB on disk"]
    if row["name"] != BF16:
        words.insert(0, f"{row['quantized_share']:.1%} quantized")
        words += [
            f"KL {with_error(row, 'kl_mean', '.4f')}",
            f"top-1 {row['top1_agreement']:.1%}",
            f"loss {with_error(row, 'loss_delta', '+.4f')}",
        ]
    for prefix, how in (("", "decoding"), ("compiled_", "compiled")):
        if speed := row.get(f"{prefix}decode_tokens_per_second"):
            words.append(f"{how} {speed:.1f} tokens/s")
            if row["name"] != BF16:
                # Measured in turns with bf16: not the quotient with the line above.
                words[-1] += f" ({row[f'{prefix}decode_ratio']:.2f} × bf16 in turns)"
    return f"{run.name} {row['name']}: {', '.join(words)}"


def reasons(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence per reason why layers were kept in bf16, or something was not measured.

    Args:
        rows: of one run.
    """
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.get("skipped"):
            names.setdefault(f"Kept in bf16 at {{}}: {row['skipped']}.", []).append(row["name"])
        if row.get("reason"):
            names.setdefault(f"Not measured at {{}}: {row['reason']}.", []).append(row["name"])
    return [text.replace("{}", ", ".join(found), 1) for text, found in names.items()]
