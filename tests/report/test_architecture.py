"""What a card says about the models."""

import shutil

from support.carded import card
from support.planted import planted

from smollm2 import variant
from smollm2.runs.run import Run


def test_only_a_mixture_of_experts_has_experts(capsys, study):
    text = card(capsys)
    assert "| experts | – | – | 4 |" in text
    assert "| active experts per token | – | – | 2 |" in text
    assert "| RoPE theta | 10000 | 10000 | 10000 |" in text
    for path in study.glob("moe-160m-*"):
        shutil.rmtree(path)
    assert "| experts" not in card(capsys)


def test_an_untied_head_is_said(capsys, study, template):
    text = card(capsys)
    assert "SwiGLU, tied embeddings, no biases" in text
    assert "embedding and head" not in text
    planted(template, "untied", 0, 5.0, model={"tie_embeddings": False})
    text = card(capsys)
    assert "SwiGLU, no biases" in text
    assert "| embedding and head | tied | tied | tied | untied |" in text


def test_a_scale_is_explained_where_the_models_have_its_dimensions(capsys, study):
    """The template's models are smaller than those of nano scale."""
    nano = variant("pow2", "nano")
    dimensions = {"d_model": nano.d_model, "n_layers": nano.n_layers}
    for changes, expected in (
        ({}, "at nano scale.\n"),
        (dimensions, "at nano scale (a quarter as wide, half as deep).\n"),
    ):
        for path in study.glob("*-s*"):
            run = Run(path)
            protocol = run.manifest["protocol"] | {"scale": "nano", "variant": "pow2:d_ff=16"}
            run.update(protocol=protocol | {"model": protocol["model"] | changes})
        assert expected in card(capsys)
