import gzip
import json
import sys

import pytest
from support.questions import ROWS, write

from smollm2.errors import UserError
from smollm2.evaluation.tasks import TASKS, Item, find_task, load_items, question
from smollm2.evaluation.tasks.load import to_item

ITEMS = {
    "hellaswag": question(
        "Baking cookies: A tray is shown on a table. The woman",
        ["eats one.", "opens it. Then bakes.", "sings", "runs"],
        1,
    ),
    "arc_easy": question("Question: What melts ice?\nAnswer:", ["heat", "cold", "dark"], 2),
    "arc_challenge": question("Question: What melts ice?\nAnswer:", ["heat", "cold"], 1),
    "piqa": question("Question: dry a cup\nAnswer:", ["use a towel ", "use milk"], 1),
    "winogrande": Item(
        ("Ann thanked Sue because Ann", "Ann thanked Sue because Sue"), (" had helped.",) * 2, 1
    ),
    "openbookqa": question("Ice is", ["cold", "hot"], 0),
}


def arc_row(**choices):
    return ROWS["arc_easy"] | {"choices": choices}


@pytest.mark.parametrize("name", TASKS)
def test_prompts(name):
    assert to_item(TASKS[name], ROWS[name], "here") == ITEMS[name]


def test_a_question_precedes_its_choices_by_a_space():
    item = question("Ice is", ["cold", "hot"], 0)
    assert item == Item(("Ice is", "Ice is"), (" cold", " hot"), 0)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_items_come_from_a_file_and_blank_lines_do_not_count(tmp_path, ending):
    write(tmp_path, f"piqa_validation.{ending}", [ROWS["piqa"], "", ROWS["piqa"] | {"label": 0}])
    loaded = load_items(TASKS["piqa"], tmp_path)
    assert [item.gold for item in loaded.items] == [1, 0]
    assert (loaded.split, loaded.total) == ("validation", 2)


def test_the_split_that_lm_eval_scores_comes_first_and_another_is_named(tmp_path):
    write(tmp_path, "openbookqa_validation.jsonl", [ROWS["openbookqa"]])
    loaded = load_items(TASKS["openbookqa"], tmp_path)
    assert (loaded.split, loaded.is_usual_split) == ("validation", False)
    write(tmp_path, "openbookqa_test.jsonl.gz", [ROWS["openbookqa"]] * 2)
    loaded = load_items(TASKS["openbookqa"], tmp_path)
    assert (loaded.split, loaded.is_usual_split, loaded.total) == ("test", True, 2)


def test_a_limit_takes_the_first_items_and_shows(tmp_path):
    write(tmp_path, "piqa_validation.jsonl", [ROWS["piqa"] | {"label": i} for i in (0, 1, 1)])
    full = load_items(TASKS["piqa"], tmp_path)
    two = load_items(TASKS["piqa"], tmp_path, limit=2)
    assert two.items == full.items[:2]
    assert (two.total, len(two.items)) == (3, 2)
    assert two.fingerprint != full.fingerprint
    three = load_items(TASKS["piqa"], tmp_path, limit=3)
    assert (three.total, three.items, three.fingerprint) == (3, full.items, full.fingerprint)
    with pytest.raises(UserError, match="at least 1 item, not 0"):
        load_items(TASKS["piqa"], tmp_path, limit=0)


def test_the_fingerprint_follows_every_part_of_an_item_and_nothing_else(tmp_path):
    changes = [{}, {"goal": "wet a cup"}, {"sol2": "use tea"}, {"label": 0}, {"id": 7}]
    found = []
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, "piqa_validation.jsonl", [ROWS["piqa"] | change])
        found.append(load_items(TASKS["piqa"], folder).fingerprint)
    assert len(set(found)) == 4
    assert found[0] == found[4]
    assert len(found[0]) == 16
    assert int(found[0], 16) > 0


def test_an_unknown_task_suggests_the_nearest():
    assert find_task("piqa") is TASKS["piqa"]
    with pytest.raises(UserError, match=r"Did you mean 'hellaswag'\? Available: .*winogrande"):
        find_task("helaswag")


@pytest.mark.parametrize(
    ("task", "rows", "says"),
    [
        ("piqa", [], "piqa_validation.jsonl is empty"),
        ("piqa", ["", "  "], "is empty"),
        ("piqa", [ROWS["piqa"], '{"goal": '], "piqa_validation.jsonl, line 2: broken JSON"),
        ("piqa", [ROWS["piqa"], "", "[1, 2]"], "line 3: no column 'goal'.*found list"),
        ("piqa", [{"goal": "a", "sol1": "b", "label": 0}], "line 1: no column 'sol2'.*found goal"),
        ("piqa", [ROWS["piqa"] | {"label": 2}], "line 1: the label is out of range: choice 3 of 2"),
        ("piqa", [ROWS["piqa"] | {"label": -1}], "out of range"),
        ("piqa", [ROWS["piqa"] | {"label": None}], "line 1: not a row of piqa"),
        ("piqa", [ROWS["piqa"] | {"goal": 3}], "line 1: not a row of piqa"),
        ("piqa", [ROWS["piqa"] | {"goal": "\ud800"}], "line 1: .*surrogate"),
        ("piqa", [ROWS["piqa"] | {"label": 1.7}], "line 1: .*not a whole number: 1.7"),
        ("piqa", [ROWS["piqa"] | {"label": True}], "line 1: .*not a whole number: True"),
        ("piqa", [ROWS["piqa"] | {"label": "1.0"}], "line 1: .*not a whole number: '1.0'"),
        ("piqa", ["[" * 100_000], "line 1: broken JSON"),
        ("hellaswag", [ROWS["hellaswag"] | {"label": "4"}], "choice 5 of 4"),
        ("hellaswag", [ROWS["hellaswag"] | {"label": ""}], "line 1: not a row"),
        ("hellaswag", [ROWS["hellaswag"] | {"endings": "abc"}], "line 1: .*not a list"),
        ("hellaswag", [ROWS["hellaswag"] | {"endings": ["a"], "label": "0"}], "at least 2 choices"),
        ("arc_easy", [ROWS["arc_easy"] | {"answerKey": "E"}], r"answerKey 'E' is not one of \['1'"),
        ("arc_easy", [ROWS["arc_easy"] | {"choices": ["a", "b"]}], "line 1: not a row of arc_easy"),
        ("arc_easy", [ROWS["arc_easy"] | {"choices": {"label": ["3"]}}], "line 1: not a row"),
        ("arc_easy", [arc_row(text=["a", "b", "c"], label=["1", "3"])], "2 labels for 3 choices"),
        ("arc_easy", [arc_row(text=["a", "b", "c"], label="123")], "line 1: .*not a list"),
        ("winogrande", [ROWS["winogrande"] | {"sentence": "No gap."}], "line 1: .*no blank"),
        ("winogrande", [ROWS["winogrande"] | {"answer": 1.5}], "not a whole number: 1.5"),
        ("winogrande", [ROWS["winogrande"] | {"answer": "3"}], "choice 3 of 2"),
    ],
)
def test_bad_data_is_named_by_file_and_line(tmp_path, task, rows, says):
    write(tmp_path, f"{task}_{TASKS[task].splits[-1]}.jsonl", rows)
    with pytest.raises(UserError, match=says):
        load_items(TASKS[task], tmp_path)


def test_a_broken_row_shows_whatever_the_limit(tmp_path):
    write(tmp_path, "piqa_validation.jsonl", [ROWS["piqa"], "{"])
    with pytest.raises(UserError, match="line 2"):
        load_items(TASKS["piqa"], tmp_path, limit=1)


def test_a_file_that_is_not_text_or_not_whole_is_refused(tmp_path):
    path = tmp_path / "piqa_validation.jsonl"
    path.write_bytes(b'{"goal": "\xff"}\n')
    with pytest.raises(UserError, match=r"piqa_validation.jsonl, line 1: broken JSON"):
        load_items(TASKS["piqa"], tmp_path)
    path.unlink()
    packed = gzip.compress(json.dumps(ROWS["piqa"]).encode() * 99)
    for data in (b"plain", packed[:-20]):
        (tmp_path / "piqa_validation.jsonl.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"piqa_validation.jsonl.gz cannot be read"):
            load_items(TASKS["piqa"], tmp_path)


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("smollm2.data.lines.LONGEST_LINE", 2**20)
    row = ROWS["piqa"] | {"goal": "x" * 2**20}
    write(tmp_path, "piqa_validation.jsonl", [ROWS["piqa"], row])
    with pytest.raises(UserError, match=r"'piqa_validation\.jsonl', line 2 is longer than 1 MiB"):
        load_items(find_task("piqa"), tmp_path)


def test_a_missing_file_or_folder_reports_what_was_expected(tmp_path):
    (tmp_path / "piqa_valid.jsonl").touch()
    with pytest.raises(
        UserError, match=r"piqa_validation.jsonl or piqa_validation.jsonl.gz. Did you mean 'piqa_v"
    ):
        load_items(TASKS["piqa"], tmp_path)
    with pytest.raises(UserError, match="no folder"):
        load_items(TASKS["piqa"], tmp_path / "none")


def test_without_a_folder_rows_come_from_the_hub_by_their_usual_names(monkeypatch):
    import datasets

    def load_dataset(repo, config, split):
        assert (repo, config, split) == ("allenai/ai2_arc", "ARC-Challenge", "test")
        return [ROWS["arc_challenge"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    loaded = load_items(TASKS["arc_challenge"], None)
    assert loaded.items == (ITEMS["arc_challenge"],)
    assert loaded.split == "test"


def test_without_the_datasets_package_the_sentence_says_data_dir(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install datasets.*use `data_dir`"):
        load_items(TASKS["piqa"], None)


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_the_sentence_says_data_dir(monkeypatch, tmp_path, offline):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match="use `data_dir`"):
        load_items(TASKS["winogrande"], None)
