"""The README's Python runs, and the variants it lists are those of the code."""

import re
from pathlib import Path

from smollm2 import VARIANTS
from smollm2.cost import parameters

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([1, 32, 49152])\n"


def test_the_table_of_variants_is_true():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d /]+) \| (\d+) \| ([\d,]+) \|", README, re.MULTILINE)
    assert {row[0] for row in rows} == set(VARIANTS)
    for name, dimensions, d_ff, total in rows:
        config = VARIANTS[name]
        shape = (config.d_model, config.n_heads, config.n_kv_heads, config.n_layers)
        assert dimensions == " / ".join(map(str, shape))
        assert int(d_ff) == config.d_ff
        assert int(total.replace(",", "")) == parameters(config).total
