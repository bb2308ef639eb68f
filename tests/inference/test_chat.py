"""A conversation in the template of a model: as transformers renders it, or a sentence."""

import json
import subprocess
import sys

import pytest
from support.instruct import SPECIAL, TEMPLATE, save_instruct, set_fields
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smollm2.data import encode_text, load_tokenizer
from smollm2.errors import UserError
from smollm2.inference import chat
from smollm2.inference.chat import ChatTemplate
from smollm2.runs.text_settings import default_template, read_text_settings, special_tokens

CHATS = {
    "user": [{"role": "user", "content": "abc de"}],
    "system": [
        {"role": "system", "content": "  Be é & <b>.\n"},
        {"role": "user", "content": "abc\n\nde\n"},
    ],
    "turns": [
        {"role": "user", "content": "abc <|im_end|> de"},
        {"role": "assistant", "content": "fgh {{ 1 }} {% x %}"},
        {"role": "user", "content": "🙂"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "'\"\\"},
    ],
}
TEMPLATES = {
    "plain": TEMPLATE,
    "default system": (
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "blocks": """
{%- set ns = namespace(n=0, system='') -%}
{% if messages[0].role == 'system' %}
    {% set ns.system = messages[0].content | trim %}
    {% set messages = messages[1:] %}
{% endif %}
{{ bos_token }}
{% for message in messages %}
    {% set ns.n = ns.n + 1 %}
    [{{ ns.n }}/{{ loop.length }}] {{ message.role | upper }}:
    {{- message['content'].split('\\n') | join(' ') }}
{% endfor %}
{{ ns.system or 'none' }}{{ eos_token }}
""",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}"
        "{{ m.content }}|{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "tools": (
        "{% if tools is not none %}T{% endif %}{{ documents is none }}{{ tools is defined }}"
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
        "{{ dict(a=1, b='é') | tojson(ensure_ascii=True, sort_keys=True) }}"
        "{{ missing is defined }}{{ missing }}{{ unk_token }}"
    ),
    "macros": (
        "{% macro turn(m) %}<{{ m.role }}>{{ m.content | replace('abc', 'x') }}{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{{ turn(m) }}{% endfor %}"
        "{{ messages | map(attribute='role') | unique | join(',') }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ '%s-%d' % ('a', 3) }}{{ '{}!'.format('b') }}{{ range(3) | list }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{% set m = 'hidden' %}[a]\n{% endgeneration %}\n"
        "{% endif %}{{ m.content }}{% endfor %}"
    ),
    "a date": "{{ strftime_now('%Y') }}{{ messages[-1].content }}",
}


@pytest.fixture(scope="module")
def fast(data) -> PreTrainedTokenizerFast:
    tokens = data.tokenizer.from_str(data.tokenizer.to_str())
    tokens.add_special_tokens([*SPECIAL.values()])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **SPECIAL)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
def test_the_prompt_is_that_of_transformers(fast, name, messages):
    expected = fast.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert ChatTemplate(TEMPLATES[name], SPECIAL).prompt(messages) == expected


@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
def test_its_tokens_are_those_of_transformers(data, tmp_path, messages):
    save_instruct(tmp_path, data.tokenizer.to_str())
    files, tokenizer = read_text_settings(tmp_path), load_tokenizer(str(tmp_path))
    template = ChatTemplate(default_template(files), special_tokens(files))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    text = template.prompt(messages)
    assert encode_text(tokenizer, text, with_special=True) == expected
    assert len(encode_text(tokenizer, text)) > len(expected)  # as a corpus is read


# Which template, and the names of special tokens

OLD_TOKEN = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False}
SETTINGS = {
    "as saved": {},
    "other tokens": {"unk_token": "<|pad|>", "image_token": "<|pad|>", "bos_token": None},
    "tokens with settings": {"eos_token": {"__type": "AddedToken", **OLD_TOKEN}},
    "of another kind": {"add_bos_token": True, "extra_special_tokens": {"video_token": "<|pad|>"}},
}


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("has_map", [False, True])
def test_special_tokens_have_the_names_that_transformers_gives_them(
    data, tmp_path, fields, has_map
):
    save_instruct(tmp_path, data.tokenizer.to_str())
    set_fields(tmp_path / "tokenizer_config.json", **fields)
    if has_map:
        special = {"pad_token": OLD_TOKEN, "additional_special_tokens": ["<|pad|>"]}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    else:
        (tmp_path / "special_tokens_map.json").unlink()
    expected = AutoTokenizer.from_pretrained(tmp_path).special_tokens_map
    assert special_tokens(read_text_settings(tmp_path)) == expected


def test_of_several_templates_it_is_the_default(data, tmp_path):
    save_instruct(tmp_path, data.tokenizer.to_str())
    settings = tmp_path / "tokenizer_config.json"
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    set_fields(settings, chat_template=several)
    expected = TEMPLATE  # a file of its own comes first
    for change in ("nothing", "no file"):
        if change == "no file":
            (tmp_path / "chat_template.jinja").unlink()
            expected = "b"
        assert default_template(read_text_settings(tmp_path)) == expected
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.get_chat_template() == expected
    set_fields(settings, chat_template=several[:1])
    with pytest.raises(UserError, match="chat templates tool_use, and none is called default"):
        default_template(read_text_settings(tmp_path))
    set_fields(settings, chat_template=...)
    assert default_template(read_text_settings(tmp_path)) is None


# What a template may not do

DENIED = {
    "insides of Python": ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "is unsafe"),
    "globals of a helper": ("{{ raise_exception.__globals__.sys }}", "is unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "it reads another file, /etc/passwd"),
    "a changed message": ("{{ messages.append(1) }}", "is unsafe"),
    "a method of a class": ("{{ dict.update(messages[0], {'role': 'x'}) }}", "update"),
    "a large range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "a syntax error": ("a\nb {% if %}", "line 2: Expected an expression"),
    "an unknown filter": ("{{ 1 | nonsense }}", "No filter named 'nonsense'"),
    "an error": ("{{ 1 / 0 }}", "division by zero"),
    "an undefined name": ("{{ nothing.more }}", "'nothing' is undefined"),
    "a long text": ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "more than 4,194,304"),
}
LARGEST = "{% for i in range(99999) %}"
ENDLESS = {
    "nested loops": LARGEST * 3 + "{% endfor %}" * 3,
    "nested loops with output": LARGEST * 3 + "{{ '' }}" + "{% endfor %}" * 3,
    "one computation": "{{ 9 ** (9 ** 9) }}",
    "a regular doubling": "{% set ns = namespace(a='a') %}{% for i in range(99) %}"
    "{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "a large number": "{{ 'a' * 10 ** 12 }}",
}


@pytest.mark.parametrize("case", DENIED)
def test_what_a_template_may_not_do_is_a_sentence(case):
    template, said = DENIED[case]
    with pytest.raises(UserError) as raised:
        ChatTemplate(template, {}).prompt(CHATS["user"])
    assert str(raised.value).startswith("The chat template cannot be used: ")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_without_end_is_stopped(monkeypatch, case):
    monkeypatch.setattr(chat, "MOST_SECONDS", 3)
    said = r"it takes (more than 3 seconds|too much (time or )?memory)"
    with pytest.raises(UserError, match=said):
        ChatTemplate(ENDLESS[case], {}).prompt(CHATS["user"])


def test_what_a_template_says_is_repeated_as_one_line():
    with pytest.raises(UserError) as raised:
        ChatTemplate("{{ raise_exception('No\n\x1b[31m system.') }}", {}).prompt(CHATS["system"])
    assert str(raised.value) == "The chat template refuses this: No \\x1b[31m system."


def test_no_process_is_left_where_the_parent_has_died():
    """Its limit of seconds is its own."""
    resource = pytest.importorskip("resource")
    request = {"template": ENDLESS["nested loops"], "variables": {}, "characters": 9}
    request |= {"seconds": 1, "memory_bytes": 2**30}
    done = subprocess.run(
        [sys.executable, "-P", str(chat.PROGRAM)],
        input=json.dumps(request).encode(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode < 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 60
