"""Backends: a new one is registered from outside and works everywhere by its name."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.command import run_main
from torch import Tensor

from smolctl.report.sections.widths import weights_table, widths_table
from smollm2 import SmolLM2, variant
from smollm2.errors import UserError
from smollm2.quantize.convert import NoLayerFits, assemble, quantize, quantized_share
from smollm2.quantize.dimensions import dimension_rows
from smollm2.quantize.format import Backend, Format
from smollm2.quantize.matrix import QuantizedMatrix, UnsupportedShape
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.registry import BACKENDS, DEFAULT_BACKEND, backend_order, register
from smollm2.quantize.shapes import Kernel


class Signs(QuantizedMatrix):
    """One bit per weight, times the mean size in its group."""

    @classmethod
    def choose(
        cls, weight: Tensor, group_size: int | None, method: str, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        assert group_size is not None
        if weight.shape[1] % group_size:
            raise UnsupportedShape(f"groups of {group_size} do not divide {weight.shape[1]}")
        groups = weight.float().unflatten(1, (-1, group_size)).abs()
        sizes = groups.mean(2) if method == "mean" else groups.median(2).values
        return {"codes": (weight > 0).to(torch.uint8), "scales": sizes.bfloat16()}

    def __init__(self, plain: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__(plain, dtype)
        self.n_out, self.n_in = plain["codes"].shape
        self.codes: Tensor
        self.scales: Tensor
        self.register_buffer("codes", plain["codes"])
        self.register_buffer("scales", plain["scales"].to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        signs = self.codes.to(x.dtype).unflatten(1, (self.scales.shape[1], -1)) * 2 - 1
        return F.linear(x, (signs * self.scales[..., None]).flatten(1))


@pytest.fixture(autouse=True)
def toy() -> Iterator[Backend]:
    """A backend `toy` that exists during one test."""
    backend = Backend(
        "toy",
        "json",
        (
            Format(
                "signs",
                1,
                Signs,
                group_sizes=(16, 32),
                methods=("mean", "median"),
                kernels=(Kernel("signs of toy", (32,)),),
            ),
        ),
    )
    register(backend)
    yield backend
    del BACKENDS["toy"]


SIGNS = {"bits": 1, "backend": "toy", "method": "mean"}


def test_a_registered_backend_quantizes_a_model():
    model = SmolLM2(variant("pow2:n_layers=2", scale="nano")).bfloat16().eval()
    config = QuantConfig(**SIGNS, group_size=32)
    state = quantize(model, config)
    found = assemble(model.config, config, state, torch.bfloat16)
    assert quantized_share(found) > 0.99
    assert sum(isinstance(module, Signs) for module in found.modules()) == 2 * 4
    weight = model.blocks[1].get_parameter("mlp.down.weight")
    inputs = torch.eye(weight.shape[1]).bfloat16()
    with torch.inference_mode():
        signs = found.blocks[1].get_submodule("mlp.down")(inputs).T
        assert found(torch.arange(20)[None]).isfinite().all()
    groups = weight.float().abs().unflatten(1, (-1, 32)).mean(2).bfloat16()
    assert torch.equal(signs, torch.where(weight > 0, 1, -1) * groups.repeat_interleave(32, 1))


def test_names_of_a_registered_backend_are_built_and_parsed():
    config = QuantConfig(1, "toy", "median", 16, None)
    assert config.name == "signs-g16-median-emb16"
    assert QuantConfig.of(config.name) == config
    names = [config.name for config in QuantConfig().grid()]
    assert names[-2:] == ["signs-g16", "signs-g32"]
    assert backend_order(DEFAULT_BACKEND) == 0
    assert backend_order("bitsandbytes") < backend_order("toy") < backend_order("")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"backend": "toi"}, "Unknown backend 'toi'. Did you mean 'toy'? Available: torchao, "),
        ({"bits": 4}, "`bits` takes 1, not 4"),
        ({"group_size": 64}, "`group_size` takes 16, 32, not 64"),
        ({"method": "hqq"}, "`method=hqq` is for 4 bits with torchao"),
        ({"backend": "torchao", "bits": 4, "method": "median"}, "is for 1 bits with toy"),
        ({"embedding_bits": 1}, "`embedding_bits` takes 8, 4 or none"),
    ],
)
def test_what_a_backend_does_not_have_is_refused(wrong, sentence):
    with pytest.raises(UserError) as error:
        QuantConfig(**SIGNS | {"group_size": 32} | wrong)
    assert sentence in str(error.value)
    assert error.value.field in wrong


@pytest.mark.parametrize("name", ["toy", "int8", "nf4"])
def test_a_name_is_registered_once(name):
    with pytest.raises(ValueError, match=f"already a quantization called '{name}'"):
        register(Backend(name, "json", (Format("other", 2, Signs),)))
    with pytest.raises(ValueError, match=f"already a quantization called '{name}'"):
        register(Backend("other", "json", (Format(name, 2, Signs),)))


def test_a_model_without_a_fitting_layer_is_refused():
    model = SmolLM2(variant("pow2:n_layers=1,d_model=48,n_heads=2,n_kv_heads=2,d_ff=48", "nano"))
    with pytest.raises(NoLayerFits, match="No layer can be quantized: 1 × blocks"):
        quantize(model, QuantConfig(**SIGNS, group_size=32))


def test_the_command_line_takes_a_registered_backend(capsys, template: Path, workdir: Path):
    shutil.copytree(template, workdir / "results/runs/run")
    options = ("--backend", "toy", "--bits", "1", "--method", "mean", "--group-size", "16")
    code, out, err = run_main(
        capsys, "quantize", "run", *options, "--tokens", "256", "--no-compile", "--json"
    )
    assert code == 0, err
    _, row = json.loads(out)["rows"]
    assert (row["name"], row["status"], row["backend"]) == ("signs-g16", "ok", "toy")
    assert (workdir / "results/runs/run/quantized/signs-g16/model.safetensors").exists()


def test_its_kernels_are_in_the_tables_of_widths():
    config = variant("pow2")
    assert weights_table("pow2", config).header[-1] == "signs of toy"
    cells = dict(widths_table({"pow2": config}).rows)
    assert cells["signs of toy: fits unpadded"] == "100.0 %"
    assert all(row["kernels"]["signs of toy"] == [32] for row in dimension_rows(config))
