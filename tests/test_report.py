"""`smolctl report`: the card follows from the files and says what is missing."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from conftest import run_main
from planted import delta, plant_quantized, planted

from smolctl.claims import speed_verdict
from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.runs import Run
from smollm2.tables import Tables

ARMS = {
    "orig": {"d_ff": 72},
    "pow2": {},
    "moe-160m": {"n_experts": 4, "n_active_experts": 2},
}


@pytest.fixture
def study(workdir, template) -> Path:
    """Two runs of each of three arms."""
    for number, (arm, model) in enumerate(ARMS.items()):
        for seed in range(2):
            run = planted(template, arm, seed, 5.0 + 0.01 * seed + 0.1 * number, model=model)
            run.update(created_at=f"2026-01-0{seed + 1}T00:00:0{number}")
    return workdir / "results/s"


def card(capsys, *options) -> str:
    code, out, err = run_main(capsys, "report", "--study", "s", *options)
    assert code == 0, err
    return out


SECTIONS = (
    "Model details", "Architecture", "Training", "Comparison", "Dense against mixture of experts",
    "Power-of-two study", "Every run", "Downstream tasks", "Quantization", "Usage", "Intended use",
    "Limits", "Reproduction", "Citation",
)  # fmt: skip


def test_the_card_has_every_section_and_number(capsys, study):
    text = card(capsys)
    assert [line for line in SECTIONS if f"\n## {line}\n" not in text] == []
    assert "5.0050 ± 0.0071" in text
    assert "# orig, pow2 and moe-160m" in text
    assert "the original card claimed" in text
    assert "Not measured: `smolctl eval orig pow2 moe-160m --tasks all --study s`" in text
    # Every picture that it shows is there.
    pictures = re.findall(r"\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) >= 2 + 6 + 1
    assert text.count("![") < len(pictures)  # of an arm's runs one is shown, the others are linked
    assert all(Path(picture).stat().st_size > 1000 for picture in pictures)


def test_only_a_mixture_of_experts_has_experts(capsys, study):
    text = card(capsys)
    assert "| experts | – | – | 4 |" in text
    assert "| experts a token uses | – | – | 2 |" in text
    assert "| RoPE theta | 10000 | 10000 | 10000 |" in text
    for path in study.glob("moe-160m-*"):
        shutil.rmtree(path)
    assert "| experts" not in card(capsys)


def test_a_head_of_its_own_is_said(capsys, study, template):
    text = card(capsys)
    assert "SwiGLU, tied embeddings, no biases" in text
    assert "embedding and head" not in text
    planted(template, "untied", 0, 5.0, model={"tie_embeddings": False})
    text = card(capsys)
    assert "SwiGLU, no biases" in text
    assert "| embedding and head | one matrix | one matrix | one matrix | two |" in text


def test_the_same_files_give_the_same_bytes(study, tmp_path_factory):
    made = []
    for hash_seed, zone, locale in (("1", "UTC", "C"), ("2", "Asia/Tokyo", "C.UTF-8")):
        folder = tmp_path_factory.mktemp("elsewhere")
        shutil.copytree(study, folder / "results/s")
        environment = {"PYTHONHASHSEED": hash_seed, "TZ": zone, "LC_ALL": locale}
        process = subprocess.run(
            [sys.executable, "-m", "smolctl", "report", "--study", "s"],
            capture_output=True,
            timeout=120,
            cwd=folder,
            env=os.environ | environment,
        )
        assert process.returncode == 0, process.stderr
        pictures = sorted(folder.glob("results/s/figures/**/*.png"))
        assert len(pictures) > 8
        files = {path.relative_to(folder): path.read_bytes() for path in pictures}
        made.append((process.stdout, files))
    assert made[0] == made[1]


@pytest.mark.parametrize("table", ["train", "val", "eval"])
def test_any_changed_cell_changes_the_card(capsys, study, table):
    before = card(capsys)
    run = Run(study / "pow2-s1")
    rows = run.rows(table)
    column = {"train": "grad_norm", "val": "accuracy", "eval": "stderr"}[table]
    rows[1][column] = "0.123"
    run.replace(table, rows)
    assert card(capsys) != before


def test_a_changed_cell_of_the_sweep_changes_the_card(capsys, study, template):
    run = planted(template, "pow2-lr", 100, 1.0, arm="pow2", manifest={"role": "sweep"})
    before = card(capsys)
    assert f"| {run.name} |" in before
    rows = run.rows("train")
    rows[1]["grad_norm"] = "0.123"
    run.replace("train", rows)
    assert card(capsys) != before


def test_check_tells_whether_a_card_is_still_true(capsys, study):
    Path("MODEL_CARD.md").write_text(card(capsys))
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0
    run = Run(study / "pow2-s0")
    rows = run.rows("eval")
    for row in rows:
        if row["metric"] == "loss":
            row["value"] = "4.0"
    run.replace("eval", rows)
    code, out, err = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert code == 1
    assert "-| pow2-s0 | pow2 | 0 | 5.1000" in out
    assert "+| pow2-s0 | pow2 | 0 | 4.0000" in out
    assert "smolctl report --study s" in err
    code, told, _ = run_main(capsys, "report", "--check", "MODEL_CARD.md", "--json")
    assert code == 1
    assert json.loads(told) == {
        "card": "MODEL_CARD.md",
        "study": "s",
        "follows": False,
        "difference": out,
    }
    Path("MODEL_CARD.md").write_text(card(capsys))
    code, told, _ = run_main(capsys, "report", "--check", "MODEL_CARD.md", "--json")
    assert code == 0
    assert json.loads(told)["follows"]


PROTOCOL = "lm-eval, 0-shot, test split, context 2048, bfloat16, cpu"


@pytest.fixture
def further(study, template) -> None:
    """A study at full size of a few steps, and one of a control."""
    for seed, (number, (name, model)) in product(range(3), enumerate(ARMS.items())):
        run = planted(template, name, seed, 7.0, study="full", steps=12, model=model)
        speed = {"orig": 100, "pow2": 110, "moe-160m": 130}[name] + seed
        fields = run.manifest["protocol"] | {"scale": "full", "variant": name}
        run.update(created_at=f"2026-01-0{seed + 1}T00:00:0{number}", protocol=fields)
        rows = run.rows("train")
        for row in rows:
            row["tokens_per_second"] = speed
        run.replace("train", rows)
    for seed in range(4):
        planted(template, ("a", "again")[seed % 2], seed, 5.0 + 0.01 * (seed // 2), study="aa")


def become(study: Path, **fields) -> None:
    """Make the runs of a study such of the variants that their arms are called after."""
    for path in study.glob("*/run.json"):
        manifest = json.loads(path.read_text())
        manifest["protocol"] |= {"variant": manifest["arm"]} | fields
        write_json(path, manifest)


def test_further_studies_answer_what_the_first_cannot(capsys, study, further):
    become(study, scale="nano")
    alone = card(capsys)
    assert "what holds at nano scale does not carry over" in alone
    assert "not measured: a full-size study on one machine" in alone
    options = ("--also", "full", "--also", "aa")
    text = card(capsys, *options, "--html", "card.html")
    better, faster = text.split("**Is it faster?**")
    assert "nats a token" in better
    assert "trained at 1.10 times" not in better
    assert (
        "| training, tokens per second, full scale (`full`) | 101 ± 1 | 1.10 × (1.08 to" in better
    )
    assert "Study `full`: full scale, 12 steps of 64 tokens." in faster
    assert "pow2, of equal size and cost, trained at 1.10 times the tokens per second" in faster
    assert "again is a control: a under another name" in faster
    assert "+9.9 % tokens per second against orig, at " in text
    assert "| survives (against orig) |" in text
    assert "## Study `aa`" in text
    assert text.count("What the arms reach in equal time was not measured") == 1
    assert "again is a control" not in better
    # A control answers for no other study, in whatever order they are given.
    turned = card(capsys, "--also", "aa", "--also", "full")
    assert "+9.9 % tokens per second against orig" in turned
    assert (
        "pow2, of equal size and cost, trained at 1.10 times"
        in turned.split("**Is it faster?**")[1]
    )
    assert "](results/s/figures/overview.png)" in text
    assert "overview.png" not in alone
    for name in ("full", "aa"):
        assert f"](results/s/figures/also-{name}/differences.png)" in text
        assert f"| {name} | " in text
    assert "smolctl report --study s --also full --also aa\n" in text
    assert Path("card.html").read_text().count("data:image/png") == len(
        re.findall(r"\.png\)", text)
    )
    Path("MODEL_CARD.md").write_text(text)
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0
    run = Run(Path("results/full/pow2-s0"))
    run.replace("train", [row | {"tokens_per_second": "50"} for row in run.rows("train")])
    code, out, err = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert code == 1
    assert "-| tokens per second | 101 ± 1 | 111 ± 1 | 131 ± 1 |" in out
    assert "+| tokens per second | 101 ± 1 | 91 ± 36 | 131 ± 1 |" in out
    assert "smolctl report --study s --also full --also aa" in err


def test_a_study_at_equal_flops_answers_what_the_first_cannot(capsys, study, template):
    """The first study need not say any more that it cannot tell, of the arms that are in both."""
    for seed in range(2):
        planted(template, "pow2-135m", seed, 5.0 + 0.01 * seed)
    become(study, scale="nano")
    open_question = "At equal FLOPs these runs cannot tell of {} against orig"
    assert open_question.format("pow2, moe-160m and pow2-135m") in card(capsys)
    for arm, seed in product(("orig", "pow2", "pow2-135m"), range(2)):
        loss = 5.0 + 0.001 * seed - (arm == "pow2")
        # Another pow2-135m goes by the same name here.
        model = {"d_ff": 96} if arm == "pow2-135m" else ARMS[arm]
        run = planted(
            template, arm, seed, loss, study="flops", manifest={"equal": "flops"}, model=model
        )
        run.update(created_at=f"2026-01-0{seed + 1}T00:00:0{len(arm)}")
    become(Path("results/flops"), scale="nano")
    text = card(capsys, "--also", "flops")
    assert open_question.format("moe-160m and pow2-135m") in text
    assert "At equal FLOPs pow2 is better than orig" in text
    assert text.count("The verdicts of each study are a family by themselves") == 1
    table = text.split("**Is it better?**")[0].splitlines()
    assert "|  | orig | pow2 | moe-160m | pow2-135m |" in table
    (row,) = (row for row in table if "equal FLOPs, nano scale (`flops`)" in row)
    assert "| 5.0005 ± 0.0007 | better: -1.0000 (" in row
    assert row.endswith(") | – | – |")


def test_the_opening_table_tells_of_quantizing_at_full_size(capsys, study, further):
    become(study, scale="nano")
    for path in Path("results/full").glob("*-s*"):
        run, is_orig = Run(path), path.name.startswith("orig")
        cells = {"disk_bytes_without_embedding": 600 if is_orig else 400}
        run.update(parameters={"total": 1000, "active": 1000, "embedding": 200})
        plant_quantized(run, int4_g32=delta(0.01, **cells), int8=delta(0.0))
    text = card(capsys, "--also", "full", "--also", "aa")
    rows = text.split("**Is it better?**")[0].splitlines()
    ends = (
        "full scale (`full`) | none | 32 | 32 |",
        "| 0.750 (int4-g32) | 0.500 (int4-g32) | 0.500",
    )
    for end in ends:
        assert sum(end in row for row in rows) == 1
    assert "Study `full`: full scale, 12 steps of 64 tokens." in text.split("What fits the dim")[1]
    # A study with another first model has no row.
    text = run_main(capsys, "report", "--study", "aa", "--also", "full")[1]
    assert "(`full`)" not in text.split("**Is it better?**")[0]


def test_a_control_leaves_the_claims_to_a_further_study(capsys, study, further):
    become(study)
    text = run_main(capsys, "report", "--study", "aa", "--also", "s")[1]
    assert "again is a control" in text.split("**Is it faster?**")[0]
    assert "overview.png" not in text
    assert "test loss: 5.0050 ± 0.0071 (orig) and 5.1050 ± 0.0071 (pow2)" in text
    assert "not measured: a study with the arms orig and pow2" not in text


def test_claims_are_judged_against_both_originals(capsys, study, template):
    for seed in range(2):
        run = planted(template, "orig-174m", seed, 5.3 + 0.01 * seed)
        run.update(created_at=f"2026-01-0{seed + 1}T00:00:09")
        for arm, accuracy in (("orig", 0.1), ("orig-174m", 0.3), ("pow2", 0.2)):
            run = Run(study / f"{arm}-s{seed}")
            scores = run.rows("eval")
            for row in scores:
                if row["metric"] == "accuracy":
                    row["value"] = accuracy + 0.001 * seed
            run.replace("eval", scores)
    become(study)
    rows = card(capsys).splitlines()
    (loss,) = (row for row in rows if row.startswith("| validation loss 3.626"))
    assert "; test loss: 5.3050 ± 0.0071 (orig-174m) and 5.1050 ± 0.0071 (pow2)" in loss
    assert loss.endswith(
        "| falls: worse (against orig); falls: better (against orig-174m, by itself) |"
    )
    (accuracy,) = (row for row in rows if row.startswith("| pow2 has the slightly higher"))
    assert accuracy.endswith("| survives (against orig); falls (against orig-174m) |")


def test_equal_time_is_told_of_by_a_study_of_equal_seconds(capsys, study, further):
    for path in Path("results/full").glob("*/run.json"):
        manifest = json.loads(path.read_text())
        write_json(path, manifest | {"equal": "seconds"})
    become(study, scale="nano")
    text, faster = card(capsys, "--also", "full").split("**Is it faster?**")
    assert "equal time was not measured" not in faster
    assert (
        "| test loss, planned for equal training time, full scale (`full`) | 7.0000 ± 0.0000 | "
        in text
    )
    assert "At equal training time pow2" in faster.split("**Does it quantize")[0]


def test_runs_too_short_to_be_timed_make_a_card(capsys, study, further):
    for path in Path("results/full").glob("*"):
        run = Run(path)
        run.replace("train", [row | {"tokens_per_second": ""} for row in run.rows("train")])
    text = card(capsys, "--also", "full")
    assert "| tokens per second | – | – | – |" in text
    assert "not measured: the runs are too short to be timed" in text


def test_one_arm_is_asked_nothing_that_takes_two(capsys, study):
    for path in study.glob("[om]*"):
        shutil.rmtree(path)
    text = card(capsys)
    assert "**Is it" not in text
    assert "**Does it" not in text


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-5, -1), "falls: slower"),
        ((-5, 1), "falls: not by so much"),
        ((1, 6), "falls: faster, but by less"),
        ((1, 9), "survives"),
        ((-1, 9), "unresolved"),
    ],
)
def test_what_becomes_of_the_claim_of_speed(interval, verdict):
    assert speed_verdict(*interval) == verdict


def test_a_start_is_judged_by_the_start(capsys, study):
    """The mixture of experts begins behind and ends ahead."""
    for path in study.glob("[om]*"):
        run, is_dense = Run(path), path.name.startswith("orig")
        rows = run.rows("val")
        for number, row in enumerate(rows):
            row["loss"] = (6.0 if is_dense else 6.5) + 0.01 * run.protocol.seed - 0.1 * number
        run.replace("val", rows)
        scores = run.rows("eval")
        for row in scores:
            if row["metric"] == "loss" and not is_dense:
                row["value"] = 4.0 + 0.01 * run.protocol.seed
        run.replace("eval", scores)
    line = next(line for line in card(capsys).splitlines() if "starts more slowly" in line)
    assert line.endswith("| falls (at the start) |")
    assert "4.0050 ± 0.0071 (moe-160m)" in line


def test_a_study_named_twice_or_not_there_is_a_sentence(capsys, study):
    for name, sentence in (("s", "'s' is named twice"), ("other", "results/other has no runs")):
        code, out, err = run_main(capsys, "report", "--study", "s", "--also", name)
        assert (code, out) == (2, "")
        assert sentence in err


def test_tasks_that_no_study_file_names_are_repeated(capsys, study):
    run = Run(study / "pow2-s0")
    score = {"task": "arc_easy", "metric": "acc", "value": 0.25, "stderr": 0.01, "clusters": 500}
    score |= {"fingerprint": "f", "protocol": PROTOCOL, "n": 500, "total": 2376}
    rows = [score, score | {"task": "piqa", "n": 9, "total": 9}]
    rows += [score | {"task": "openbookqa"}, rows[1] | {"metric": "acc_norm"}]
    rows += [score | {"protocol": PROTOCOL.replace("bfloat16", "float32")}]
    run.replace("eval", [*run.rows("eval"), *rows])
    quantized = study / "pow2-s0/quantized/int8"
    quantized.mkdir(parents=True)
    Tables(quantized).replace("eval", rows[1:2])
    commands = re.findall(r"^smolctl eval (.*)$", card(capsys), flags=re.MULTILINE)
    assert commands == [
        "pow2-s0 --tasks arc_easy,openbookqa --limit 500 --study s",
        "pow2-s0 pow2-s0+int8 --tasks piqa --study s",
        "pow2-s0 --tasks arc_easy --limit 500 --dtype float32 --study s",
    ]
    # What the study file asks for needs no command; another dtype, limit or seed does.
    plan = '[arms."pow2"]\nvariant = "pow2"\nseeds = [0]\n[eval]\ntasks = "arc_easy,piqa"\n'
    (study / "study.toml").write_text(f"{plan}limit = 500\n")
    commands = re.findall(r"^smolctl eval (.*)$", card(capsys), flags=re.MULTILINE)
    assert commands == [
        "pow2-s0 --tasks openbookqa --limit 500 --study s",
        "pow2-s0 --tasks arc_easy --limit 500 --dtype float32 --study s",
        "pow2-s0+int8 --tasks piqa --study s",
    ]


def test_check_of_no_card_is_a_sentence(capsys, study):
    Path("README.md").write_text("# Something else\n")
    for name, sentence in (("README.md", "no card of smolctl"), ("none.md", "cannot be read")):
        code, _, err = run_main(capsys, "report", "--check", name)
        assert code == 2
        assert sentence in err


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--study s --study t",
        "--results results",
        "--study 's",
        "--study s --folder x",
        "--study s --out",
    ],
)
def test_a_card_that_names_no_study_is_a_sentence(capsys, study, options):
    Path("card.md").write_text(f"<!-- Made by `smolctl report {options}` of runs -->\n")
    code, _, err = run_main(capsys, "report", "--check", "card.md")
    assert code == 2
    assert "does not say which study it is of" in err


@pytest.mark.parametrize(
    "option", ["--study", "--also", "--results", "--figures", "--out", "--html"]
)
def test_check_refuses_what_the_card_says(capsys, study, option):
    Path("MODEL_CARD.md").write_text(card(capsys))
    code, _, err = run_main(capsys, "report", "--check", "MODEL_CARD.md", option, "other")
    assert code == 2
    assert f"leave {option} out" in err


def test_the_version_is_that_of_the_runs(capsys, study, monkeypatch):
    Path("MODEL_CARD.md").write_text(card(capsys))
    monkeypatch.setattr("smollm2._version.__version__", "99.9")
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0


@pytest.mark.parametrize("name", ["my figs", "a(b)c", "é%20", "x'y&z"])
def test_links_to_figures_with_odd_names_hold(capsys, study, name):
    from markdown_it import MarkdownIt

    text = card(capsys, "--figures", name, "--html", "card.html")
    Path("MODEL_CARD.md").write_text(text)
    rendered = MarkdownIt("commonmark").render(text)
    shown = rendered.count("<img") + rendered.count("<a href")
    page = Path("card.html").read_text()
    assert shown == page.count("data:image/png;base64,") >= 9
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0


def test_figures_that_cannot_be_written_are_a_sentence(capsys, study):
    Path("file").write_text("")
    code, out, err = run_main(capsys, "report", "--study", "s", "--figures", "file/x")
    assert (code, out) == (2, "")
    assert "Cannot write figures to file" in err


def test_a_page_lacks_no_picture(capsys, study):
    from smolctl.page import html

    text = card(capsys)
    (study / "figures/loss.png").unlink()
    with pytest.raises(UserError, match=r"s/figures/loss\.png cannot be read"):
        html(text, "x")
    with pytest.raises(UserError, match="is none"):
        html("![a](b c.png)", "x")


def test_a_card_links_from_where_it_lies(capsys, study):
    Path("cards").mkdir()
    out = card(capsys, "--out", "cards/s.md", "--html", "s.html")
    assert out == ""
    text = Path("cards/s.md").read_text()
    pictures = re.findall(r"\[[^\]]*\]\(([^)]+)\)", text)
    assert all(picture.startswith("../results/s/figures/") for picture in pictures)
    assert Path("s.html").read_text().count("data:image/png") == len(pictures)
    assert run_main(capsys, "report", "--check", "cards/s.md")[0] == 0


def test_no_path_of_the_machine_is_in_the_card(capsys, study, workdir, tmp_path_factory):
    options = ["--results", str(workdir / "results"), "--figures", str(workdir / "figs")]
    text = card(capsys, *options)
    assert str(workdir) not in text
    assert "](figs/loss.png)" in text
    code, _, err = run_main(capsys, "report", "--study", "s", "--figures", "/nowhere/figs")
    assert code == 2
    assert "folders of this machine" in err


def test_a_card_is_utf8_whatever_the_terminal(study):
    process = subprocess.run(
        [sys.executable, "-m", "smolctl", "report", "--study", "s"],
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 0, process.stderr
    assert "±" in process.stdout.decode()


def test_the_front_matter_is_read_by_the_hub(capsys, study):
    from huggingface_hub import ModelCard

    data = ModelCard(card(capsys)).data
    assert data.license == "apache-2.0"
    losses = [result for result in data.eval_results if result.metric_type == "loss"]
    assert [round(result.metric_value, 3) for result in losses] == [5.005, 5.105, 5.205]


def test_the_commands_of_the_card_repeat_the_runs(capsys, study):
    text = card(capsys)
    commands = re.findall(r"^smolctl train .*$", text, flags=re.MULTILINE)
    assert len(commands) == 6
    assert all("--steps 10" in command and "--seq-len 32" in command for command in commands)
    assert "--name pow2-s1" in text


def test_a_rate_is_repeated_to_the_last_digit(capsys, study):
    path = study / "pow2-s1/run.json"
    manifest = json.loads(path.read_text())
    manifest["request"]["lr"] = 0.0012345678
    write_json(path, manifest)
    assert "--lr 0.0012345678 " in card(capsys)


def test_compare_leaves_the_figures_of_the_card(capsys, study):
    card(capsys)
    before = {path: path.read_bytes() for path in study.glob("figures/*.png")}
    assert run_main(capsys, "compare", "orig", "pow2", "--study", "s")[0] == 0
    assert {path: path.read_bytes() for path in study.glob("figures/*.png")} == before
    assert (study / "figures/orig-vs-pow2/loss.png").exists()
    code, _, err = run_main(
        capsys, "compare", "orig", "pow2", "--study", "s", "--figures", "/dev/null/x"
    )
    assert code == 2
    assert "Cannot write figures" in err


def test_runs_of_another_protocol_and_broken_ones_are_named_in_the_card(
    capsys,
    study,
    template,
):
    old = planted(template, "orig", 9, 1.0, steps=20)
    old.update(finished_at="2020-01-01")
    broken = planted(template, "pow2", 8, 1.0)
    (broken.path / "val.csv").write_text("step\n")
    (study / "nothing").mkdir()
    text = card(capsys)
    assert "orig-s9 differs from" in text
    assert "pow2-s8/val.csv lacks the column" in text
    assert " pow2-s8 is left out." in text
    assert "1.0000" not in text


def test_a_study_of_one_run_makes_a_card(capsys, study):
    for path in study.iterdir():
        if path.name not in ("pow2-s0",):
            shutil.rmtree(path)
    text = card(capsys)
    assert "Not measured in this study: one with the arms `orig` and `pow2` does" in text


def test_without_runs_the_train_command_is_said(capsys, workdir):
    code, out, err = run_main(capsys, "report")
    assert (code, out) == (2, "")
    assert "smolctl train --variant" in err


def test_a_page_is_one_file_with_its_pictures(capsys, study):
    text = card(capsys, "--html", "card.html")
    page = Path("card.html").read_text()
    assert page.count("data:image/png;base64,") == len(re.findall(r"\.png\)", text))
    assert not re.search(r'src="(?!data:)', page)
    assert "model-index" not in page
    for cell in ("5.0050 ± 0.0071", "the original card claimed"):
        assert cell in page


def test_text_from_a_manifest_is_no_markup_of_the_page(capsys, study):
    for seed in range(2):
        path = study / f"pow2-s{seed}" / "run.json"
        manifest = json.loads(path.read_text())
        manifest["environment"]["device_name"] = "<script>alert(1)</script> | x"
        write_json(path, manifest)
    text = card(capsys, "--html", "card.html")
    assert "\\| x" in text
    assert "<script" not in Path("card.html").read_text()


@pytest.mark.slow
def test_the_page_loads_in_a_browser(capsys, study):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium or Chrome on the path")
    card(capsys, "--html", "card.html")
    page = Path("card.html").read_text()
    probe = (
        "<script>window.addEventListener('load', () => { const images = [...document.images];"
        "document.title = images.length + ' ' + images.filter(i => i.naturalWidth > 0).length;"
        "});</script></body>"
    )
    Path("probe.html").write_text(page.replace("</body>", probe))
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--user-data-dir=profile", "--enable-logging=stderr", "--dump-dom"),
        *("--virtual-time-budget=5000", Path("probe.html").resolve().as_uri()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    wanted = page.count("<img")
    assert f"<title>{wanted} {wanted}</title>" in result.stdout
    assert "CONSOLE" not in result.stderr
