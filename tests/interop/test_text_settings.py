"""What an instruct model brings for its text survives import, training and export."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from support.command import run_main
from support.foreign import runs_here
from support.instruct import TEMPLATE
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from smollm2.runs.run import Run
from smollm2.runs.text_settings import chat_template

CHAT = [{"role": "user", "content": "abc de"}, {"role": "assistant", "content": "é?"}]
KEPT = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def require_same(ours: Path, theirs: Path) -> None:
    for name in KEPT:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    require_same_text(ours, theirs)
    settings = [GenerationConfig.from_pretrained(path).to_dict() for path in (theirs, ours)]
    assert settings[0] == settings[1]
    configs = [AutoConfig.from_pretrained(path) for path in (theirs, ours)]
    for name in ("bos_token_id", "pad_token_id"):
        assert getattr(configs[0], name) == getattr(configs[1], name)


def require_same_text(ours: Path, theirs: Path) -> None:
    """Check that transformers writes and reads a chat in the same way."""
    before, after = map(AutoTokenizer.from_pretrained, (theirs, ours))
    for prompt in (True, False):
        options = {"tokenize": False, "add_generation_prompt": prompt}
        text = after.apply_chat_template(CHAT, **options)
        assert text == before.apply_chat_template(CHAT, **options)
        assert text.count("<|im_start|>") == 2 + prompt
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.all_special_ids == before.all_special_ids
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize("place", ["file", "settings", "both"])
def test_an_import_is_exported_as_it_came(capsys, talker, place):
    separate, settings = talker / "chat_template.jinja", talker / "tokenizer_config.json"
    if place != "file":
        content = json.loads(settings.read_text()) | {"chat_template": TEMPLATE}
        settings.write_text(json.dumps(content))
    if place == "settings":
        separate.unlink()
    assert run_main(capsys, "export", "./talker", "out", "--to", "hf")[0] == 0
    require_same(Path("out"), talker)
    assert separate.exists() == Path("out/chat_template.jinja").exists()
    assert run_main(capsys, "export", "talker", "m.gguf", "--to", "gguf")[0] == 0
    require_same_gguf(Path("m.gguf"), talker)


def require_same_gguf(file: Path, talker: Path) -> None:
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    ids = json.loads((talker / "generation_config.json").read_text())
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["tokenizer.ggml.bos_token_id"] == ids["bos_token_id"]
    assert fields["tokenizer.ggml.eos_token_id"] == ids["eos_token_id"][0]
    assert fields["tokenizer.ggml.eot_token_id"] == ids["eos_token_id"][1]
    assert fields["tokenizer.ggml.padding_token_id"] == ids["pad_token_id"]


def test_a_gguf_file_brings_it_and_takes_it_along(capsys, talker, corpus):
    assert run_main(capsys, "export", "./talker", "m.gguf", "--to", "gguf")[0] == 0
    options = ["--data", str(corpus), "--seq-len", "16", "--steps", "2", "--name", "tuned"]
    assert run_main(capsys, "train", "--from", "./m.gguf", *options)[0] == 0
    for name in ("m", "tuned"):
        assert run_main(capsys, "export", name, f"{name}-again.gguf", "--to", "gguf")[0] == 0
        require_same_gguf(Path(f"{name}-again.gguf"), talker)
        assert run_main(capsys, "export", name, f"{name}-hf", "--to", "hf")[0] == 0
        require_same_text(Path(f"{name}-hf"), talker)
        settings = [GenerationConfig.from_pretrained(x) for x in (f"{name}-hf", talker)]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert getattr(settings[0], key) == getattr(settings[1], key)


def test_what_is_trained_from_it_keeps_it(capsys, talker, corpus):
    options = ["--data", str(corpus), "--seq-len", "16", "--steps", "2"]
    assert run_main(capsys, "train", "--from", "./talker", *options, "--name", "tuned")[0] == 0
    again = ["train", "--from", "tuned", *options, "--name", "again"]
    assert run_main(capsys, *again)[0] == 0
    shutil.rmtree("results/runs/talker")
    for name in ("tuned", "again"):
        assert run_main(capsys, "export", name, f"{name}-hf", "--to", "hf")[0] == 0
        require_same(Path(f"{name}-hf"), talker)
    assert run_main(capsys, "export", "again", "m.gguf", "--to", "gguf")[0] == 0
    require_same_gguf(Path("m.gguf"), talker)
    prompt = ("--prompt", "abc", "--max-new-tokens", "2")
    assert run_main(capsys, "generate", "again", *prompt)[0] == 0


def test_a_changed_template_is_another_model(capsys, talker):
    prompt = ("--prompt", "abc", "--max-new-tokens", "2")
    assert run_main(capsys, "generate", "./talker", *prompt)[0] == 0
    shutil.copytree("talker", "copied")
    Path("copied/chat_template.jinja").write_text("{{ messages }}")
    assert run_main(capsys, "export", "./copied", "out", "--to", "hf")[0] == 0
    assert Path("out/chat_template.jinja").read_text() == "{{ messages }}"
    assert runs_here() == ["copied", "talker"]


def test_a_run_that_an_older_version_imported_is_completed(capsys, talker):
    prompt = ("--prompt", "abc", "--max-new-tokens", "2")
    files = [talker / name for name in ("chat_template.jinja", *KEPT[:2])]
    kept = {path: path.read_bytes() for path in files}
    for path in kept:
        path.unlink()
    assert run_main(capsys, "generate", "./talker", *prompt)[0] == 0
    shutil.rmtree("results/runs/talker/transformers")
    for path, content in kept.items():
        path.write_bytes(content)
    for _ in range(2):
        assert run_main(capsys, "generate", "./talker", *prompt)[0] == 0
    assert runs_here() == ["talker"]
    assert run_main(capsys, "export", "./talker", "out", "--to", "hf")[0] == 0
    require_same(Path("out"), talker)


@pytest.mark.parametrize("name", [*KEPT, "chat_template.jinja"])
def test_a_damaged_file_is_named(capsys, talker, name):
    (talker / name).write_bytes(b"\xff{")
    code, out, err = run_main(capsys, "export", "./talker", "out", "--to", "hf")
    assert (code, out) == (2, "")
    assert f"./talker: {name} cannot be read: it is not UTF-8 text." in err
    assert runs_here() == []


def test_a_link_in_a_run_is_not_exported(capsys, talker):
    assert run_main(capsys, "export", "./talker", "out", "--to", "hf")[0] == 0
    secret = Path("secret.json")
    secret.write_text('{"key": 1}')
    kept = Run(Path("results/runs/talker")).path / "transformers" / "tokenizer_config.json"
    kept.unlink()
    kept.symlink_to(secret.absolute())
    code, _, err = run_main(capsys, "export", "talker", "more", "--to", "hf")
    assert code == 2
    assert "tokenizer_config.json of run 'talker' is a link" in err
    assert not Path("more").exists()


def test_several_templates_have_names():
    several = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    content = json.dumps({"chat_template": [*several, 3, {"name": 1}]}).encode()
    assert chat_template({"tokenizer_config.json": content}) == several
    assert chat_template({}) is None


def test_a_weight_beyond_the_dtype_is_not_written(capsys, model):
    found = load_file(model / "model.safetensors")
    found["model.norm.weight"][0] = 1e5  # a vector, which stays in f32
    save_file(found, model / "model.safetensors", metadata={"format": "pt"})
    assert run_main(capsys, "export", "./mine", "v.gguf", "--to", "gguf")[0] == 0
    found["model.layers.0.mlp.up_proj.weight"][0, 0] = -1e5
    save_file(found, model / "model.safetensors", metadata={"format": "pt"})
    options = ("--to", "gguf", "--study", "s")
    code, _, err = run_main(capsys, "export", "./mine", "m.gguf", *options)
    assert code == 2
    assert "has a weight of 1e+05, and f16 reaches 6.55e+04; give --dtype f32." in err
    assert not Path("m.gguf").exists()
    assert run_main(capsys, "export", "./mine", "m.gguf", *options, "--dtype", "f32")[0] == 0
