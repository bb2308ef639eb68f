"""A study that takes seconds."""

from pathlib import Path

import pytest


@pytest.fixture
def study_file(workdir, corpus, variants) -> Path:
    """A study of two arms and two seeds in the current directory."""
    path = workdir / "tinies.toml"
    path.write_text(
        f"""
        seeds = [0, 1]
        [arms]
        two = "{variants}/tiny.toml"
        three = {{ variant = "{variants}/tiny.toml", set = ["n_layers=3"] }}
        [train]
        steps = 6
        seq_len = 32
        micro_batch_size = 2
        data = "{corpus}"
        tokenizer = "train:512"
        val_tokens = 128
        test_tokens = 256
        """
    )
    return path
