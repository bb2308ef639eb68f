"""Decoding speed for one sequence, compared with llama.cpp and transformers.

    python benchmarks/decode_speed.py [--rounds 3] [--works int8]

Ours is `smollm2.inference.decoder.Decoder`, eager and compiled, in bf16, int8 and int4 in groups of
64. Its peers are llama.cpp in F16, Q8_0 and Q4_0 (`pip install llama-cpp-python`, built from
source) and the `generate` of transformers in bf16, eager and with its forward pass compiled. All
have random weights of `pow2`, read the same prompt of 64 tokens and write 64, greedily; loading,
compilation and a first short pass are not timed. Works named `prompt 512` read that many instead,
and write 8. The limit is the memory's: how many times per second it could deliver the bytes that
ours reads per token, at the rate at which torch sums a large tensor.

`first_token_seconds` is from the start of the process to the first token after the prompt: imports,
random weights (instead of loading), quantizing and compilation without a cache.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import side_by_side
from side_by_side import Row

if TYPE_CHECKING:
    from smollm2.model.transformer import SmolLM2

LLAMA_CPP = {"bf16": "f16", "int8": "q8_0", "int4-g64": "q4_0"}
OURS = ("ours", "ours compiled", "llama.cpp", "limit")
CONTENDERS = {
    f"pow2 {weights}": (*OURS, *(("transformers", "transformers compiled") if not i else ()))
    for i, weights in enumerate(LLAMA_CPP)
} | {f"pow2 {weights}, prompt 512": ("ours", "llama.cpp") for weights in ("int8", "int4-g64")}
QUANTITIES = (
    "decode_tokens_per_second", "prefill_tokens_per_second", "first_token_seconds", "bytes_a_token",
    "read_gb_per_second",
)  # fmt: skip


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    side_by_side.run(side_by_side.start(parser, measure), CONTENDERS, QUANTITIES)


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    weights = work.split()[1].rstrip(",")
    if "prompt" in work:
        options.prompt, options.new = int(work.split()[-1]), 8
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("TORCHINDUCTOR_CACHE_DIR", "SMOLCTL_CACHE"):
            os.environ[cache] = folder  # compilation starts from nothing
        if contender == "limit":
            return limit(weights)
        if contender == "llama.cpp":
            return llama_cpp(weights, Path(folder), options)
        run = ours if contender.startswith("ours") else transformers
        return run(weights, contender.endswith("compiled"), options)


def ours(weights: str, compiled: bool, options: argparse.Namespace) -> Row:
    import torch

    from smollm2.inference.decoder import Decoder, Sampling

    decoder = Decoder(model_in(weights), options.prompt + options.new, compiled)
    choose = partial(Sampling().choose, generator=torch.Generator())

    def write(n: int) -> tuple[float, float]:
        start = time.perf_counter()
        token = choose(decoder.prefill(range(options.prompt)))
        read = time.perf_counter()
        for _ in range(n):
            token = choose(decoder.step(token))
        return read - start, time.perf_counter() - read

    write(0)
    first = since_start()
    write(4)
    return speeds(options, *write(options.new)) | {"first_token_seconds": first}


def model_in(weights: str) -> "SmolLM2":
    """`pow2` with its weights in `weights`: bf16, or as `QuantConfig.name` says."""
    from smollm2 import SmolLM2, variant
    from smollm2.quantize.convert import assemble, quantize
    from smollm2.quantize.quant_config import QuantConfig

    model = SmolLM2(variant("pow2")).bfloat16().eval()
    if weights == "bf16":
        return model
    config = QuantConfig.of(weights)
    return assemble(model.config, config, quantize(model, config), model.dtype)


def llama_cpp(weights: str, folder: Path, options: argparse.Namespace) -> Row:
    import numpy as np
    from llama_cpp import Llama

    from smollm2 import SmolLM2, variant
    from smollm2.data import train_tokenizer
    from smollm2.interop.gguf import save_gguf

    model = SmolLM2(variant("pow2"))
    tokenizer = train_tokenizer(320, [Path(__file__).read_text()] * 20)
    path, dtype = folder / "pow2.gguf", LLAMA_CPP[weights]
    save_gguf(path, model.state_dict(), model.config, tokenizer, dtype=dtype, name="pow2")
    llama = Llama(
        str(path),
        n_ctx=options.prompt + options.new,
        n_batch=options.prompt + options.new,  # llama_cpp keeps the scores of one batch
        n_threads=options.threads,
        n_threads_batch=options.threads,
        verbose=False,
    )

    def write(n: int) -> tuple[float, float]:
        llama.reset()
        start = time.perf_counter()
        llama.eval(list(range(options.prompt)))
        read = time.perf_counter()
        for _ in range(n):
            llama.eval([int(np.argmax(llama.scores[llama.n_tokens - 1]))])
        return read - start, time.perf_counter() - read

    write(4)
    return speeds(options, *write(options.new))


def transformers(weights: str, compiled: bool, options: argparse.Namespace) -> Row:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from smollm2 import variant
    from smollm2.interop.hf import hf_config

    config = AutoConfig.for_model(**hf_config(variant("pow2"), "bfloat16"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    cache = {}
    if compiled:
        model.forward = torch.compile(model.forward)
        cache = {"cache_implementation": "static"}  # of one shape, as compiled code requires
    tokens = torch.arange(options.prompt)[None]

    def seconds(n: int) -> float:
        start = time.perf_counter()
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=n,
            max_new_tokens=n,
            pad_token_id=0,
            **cache,
        )
        assert out.shape[1] == options.prompt + n
        return time.perf_counter() - start

    seconds(1)
    first = since_start()
    for n in (1, 1 + options.new):  # another length needs a new static cache
        seconds(n)
    reading = seconds(1)
    writing = seconds(1 + options.new) - reading
    return speeds(options, reading, writing) | {"first_token_seconds": first}


def speeds(options: argparse.Namespace, reading: float, writing: float) -> Row:
    return {
        "prefill_tokens_per_second": options.prompt / reading,
        "decode_tokens_per_second": options.new / writing,
    }


def limit(weights: str) -> Row:
    """The memory's limit: every byte of the weights is read once per token."""
    import torch

    from smollm2.quantize.convert import memory_bytes

    size = memory_bytes(model_in(weights))
    numbers = torch.ones(2**27, dtype=torch.int64)
    rate = numbers.nbytes / min(timed(numbers.sum) for _ in range(5))
    return {
        "decode_tokens_per_second": rate / size,
        "bytes_a_token": size,
        "read_gb_per_second": rate / 1e9,
    }


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def since_start() -> float:
    """Seconds since this process began (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
