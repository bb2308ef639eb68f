"""Quantizing one finished run and measuring what that changes; `quantize` and `study` do it."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm2.errors import RunError, UserError

if TYPE_CHECKING:
    from smolctl.models import Model
    from smolctl.scoring import Scorer
    from smollm2.generate import Decoder
    from smollm2.model import SmolLM2
    from smollm2.quantize.config import QuantConfig
    from smollm2.quantize.convert import Plain
    from smollm2.runs import Run
    from smollm2.scores import Subject
    from smollm2.tasks import TaskItems

# What the libraries raise where a kernel cannot run, in torch, torchao and bitsandbytes.
CANNOT_RUN = (RuntimeError, ValueError, NotImplementedError, AssertionError, ImportError)
SPEEDS = (
    *("prefill_tokens_per_second", "decode_tokens_per_second", "prefill_ratio", "decode_ratio"),
    *("compiled_decode_tokens_per_second", "compiled_decode_ratio"),
)
N_TIMED = 64  # tokens of prompt, and new ones, unless the model's context is shorter


@dataclass(frozen=True)
class What:
    """What is measured of each configuration.

    Args:
        n_tokens: of the validation split, in windows at even distances; None is as many as the
            run's quantize.csv holds, else `VALIDATION_TOKENS`.
        asked: the questions of the tasks that are scored.
        speed: whether decoding is timed. It is at full size only; no other says anything about it.
        compiled: whether it is also timed compiled.
    """

    n_tokens: int | None = None
    asked: "tuple[TaskItems, ...]" = ()
    speed: bool = True
    compiled: bool = True


class Quantizer:
    """A finished run that is quantized in one way after another.

    Args:
        device, source: as of `Scorer`. All is computed in bf16.

    Raises:
        UserError: as `Scorer`; or the run's quantize.csv is broken or of another number of tokens.
    """

    def __init__(
        self,
        model: "Model",
        what: What,
        *,
        device: str | None = None,
        source: str | None = None,
    ) -> None:
        from smolctl.console import hush
        from smolctl.scoring import Scorer

        hush()
        self.run, self.what = model.run, what
        self.scorer = Scorer(model, device=device, dtype="bf16", with_text=True, source=source)
        self.is_timed = what.speed and self.run.protocol.scale == "full"
        self.n_tokens = self.sample()
        self.decoders: dict[bool, Decoder] = {}  # of the original, eager and compiled

    @property
    def untimed(self) -> str:
        """Why decoding is not timed, though it was asked for, as a sentence; empty if it is."""
        from smollm2.cost import full_size, parameters

        scale = self.run.protocol.scale
        if self.is_timed or not self.what.speed:
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
        """How many validation tokens there are in the windows that are scored: the same for every
        row of quantize.csv, for else neither losses nor changes could be compared."""
        from smolctl.quantization import read_rows
        from smollm2.data import window_count
        from smollm2.quantize.config import VALIDATION_TOKENS
        from smollm2.scores import window_length

        rows = read_rows(self.run)
        kept = set() if rows is None else set(rows["n"].dropna().astype(int))
        wanted = self.what.n_tokens or next(iter(kept), VALIDATION_TOKENS)
        assert self.scorer.data is not None
        texts = set() if rows is None else set(rows["fingerprint"]) - {""}
        if texts - {self.scorer.data.fingerprint}:  # only an imported run takes any text
            raise UserError(
                f"Run {self.run.name!r} has been quantized on another text than "
                f"{self.scorer.data.source}, and the changes would not compare; give that --data, "
                "or remove its quantize.csv to begin anew."
            )
        self.seq_len = window_length(self.run, self.scorer.data.validation)
        n_tokens = window_count(self.scorer.data.validation, self.seq_len, wanted) * self.seq_len
        if kept - {n_tokens}:
            raise UserError(
                f"Run {self.run.name!r} has been quantized on {min(kept)} validation tokens, not "
                f"{n_tokens}, and the changes would not compare; leave --tokens out, "
                "or remove its quantize.csv to begin anew."
            )
        return n_tokens

    def measure(self, configs: "list[QuantConfig]") -> Iterator[dict[str, Any]]:
        """The rows of quantize.csv, first that of the original; each is written as it comes."""
        from smollm2.quantize.measure import sizes

        self.original = self.scorer.load()
        self.loss = self.score(self.scorer, self.original)
        row = {"name": "bf16", "bits": 16, "quantized_share": 0, **sizes(self.original.model)}
        yield self.put(row | self.losses(self.original, self.loss) | self.speeds(None))
        for config in configs:
            yield self.put(self.quantized(config))

    def quantized(self, config: "QuantConfig") -> dict[str, Any]:
        """Quantize, save, load what was saved, and measure that."""
        from smolctl.models import Model
        from smollm2.quantize.convert import quantize, quantized_share
        from smollm2.quantize.measure import sizes
        from smollm2.quantize.store import save

        row: dict[str, Any] = {"name": config.name, **dataclasses.asdict(config)}
        final = self.scorer.model.final
        try:
            plain = quantize(self.original.model, config)
            require_kernels(self.original.model, config, plain)
        except (UserError, RunError):
            raise
        except CANNOT_RUN as error:
            return row | {"reason": in_words(error)}
        saved = save(self.run, final.sha256, config, plain)
        scorer = self.scorer.of(Model(self.run, final, saved))
        subject = scorer.load()
        row |= {
            "quantized_share": quantized_share(subject.model),
            "skipped": plain.summary,
            **sizes(subject.model, plain, saved.path / "model.safetensors"),
            **self.losses(subject, self.score(scorer, subject)),
        }
        return row | self.speeds(subject.model)

    def score(self, scorer: "Scorer", subject: "Subject") -> dict[str, Any]:
        """Score the tasks and the validation text; its row of eval.csv."""
        asked = list(self.what.asked)
        rows = list(scorer.score(subject, ["validation"], asked, self.n_tokens, spread=True))
        return next(row for row in rows[0] if row["metric"] == "loss")

    def losses(self, subject: "Subject", loss: dict[str, Any]) -> dict[str, Any]:
        """The loss, and how it changed from the original's."""
        from smollm2.quantize.measure import loss_change, scored_windows

        change = loss_change(
            scored_windows(self.original.tables, self.loss, self.seq_len),
            scored_windows(subject.tables, loss, self.seq_len),
        )
        return {
            "loss": loss["value"],
            "loss_delta": change.value,
            "loss_delta_stderr": change.stderr,
            "n": loss["n"],
            "clusters": loss["clusters"],
            "fingerprint": loss["fingerprint"],
        }

    def speeds(self, model: "SmolLM2 | None") -> dict[str, Any]:
        """Tokens a second, eager and compiled, in turns with the original; None is that itself."""
        from smollm2.generate import Decoder
        from smollm2.quantize.measure import speeds_in_turns

        if not self.is_timed:
            return {}
        n = min(N_TIMED, self.run.protocol.model.max_seq_len // 2)
        cells: dict[str, Any] = {}
        reasons = []
        for compiled in (False, True) if self.what.compiled else (False,):
            prefix = "compiled_" if compiled else ""
            try:
                if compiled not in self.decoders:
                    self.decoders[compiled] = Decoder(self.original.model, 2 * n, compiled)
                before = self.decoders[compiled]
                after = before if model is None else Decoder(model, 2 * n, compiled)
                speed, ratio = speeds_in_turns(before, after, n)
            except CANNOT_RUN as error:
                reasons.append(f"{'compiled' if compiled else 'eager'}: {in_words(error)}")
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
        """Add a row to quantize.csv, in the place of one of the same name; a speed that is not
        measured this time stays if it was measured on the same machine."""
        import torch

        from smollm2.device import device_name

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
            self.run.replace("quantize", [*others, row])
        return row


def require_kernels(original: "SmolLM2", config: "QuantConfig", plain: "Plain") -> None:
    """Raise what the libraries raise if what `original` has become cannot compute here."""
    import torch

    from smollm2.quantize.convert import assemble

    with torch.inference_mode():
        model = assemble(original.config, config, plain, original.dtype)
        model(torch.zeros(1, 1, dtype=torch.long, device=original.device))


def in_words(error: BaseException) -> str:
    """The first line of what a library says, with its type where that is all there is."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def missing(run: "Run", configs: "Sequence[QuantConfig]") -> "list[QuantConfig]":
    """Those whose loss quantize.csv does not have, but for those that fit no layer."""
    from smolctl.quantization import read_rows
    from smollm2.quantize.convert import NO_LAYER

    rows = read_rows(run)
    if rows is None:
        return list(configs)
    is_done = rows["loss"].notna() | rows["reason"].str.startswith(NO_LAYER)
    done = set(rows["name"][is_done])
    return [config for config in configs if config.name not in done]


def one_line(run: "Run", row: dict[str, Any]) -> str:
    """`pow2-s0 int4-g64: 99.9% quantized, 96.1 MB on disk, loss +0.0123 ± 0.0004, ...`."""
    words = []
    if "loss" in row:
        words.append(f"{row['disk_bytes'] / 1e6:.1f} MB on disk")
        if row["name"] != "bf16":
            words.insert(0, f"{row['quantized_share']:.1%} quantized")
            spread = row["loss_delta_stderr"]
            words.append(f"loss {row['loss_delta']:+.4f}" + (f" ± {spread:.4f}" if spread else ""))
            if row.get("skipped"):
                words.append(f"left in bf16: {row['skipped']}")
    for prefix, how in (("", "decoding"), ("compiled_", "compiled")):
        if speed := row.get(f"{prefix}decode_tokens_per_second"):
            words.append(f"{how} {speed:.1f} tokens/s")
            if row["name"] != "bf16":
                # Its own measurement, in turns: not the quotient with bf16's line above.
                words[-1] += f" ({row[f'{prefix}decode_ratio']:.2f} × bf16 in turns)"
    if row.get("reason"):
        words.append(row["reason"])
    return f"{run.name} {row['name']}: {', '.join(words)}"
