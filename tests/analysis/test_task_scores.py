"""The task scores of a comparison: over the same questions, and true to their items."""

import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.compared import compared
from support.planted import planted

from smollm2.runs.run import Run


@pytest.fixture
def quiz(capsys, workdir, template):
    """Two runs each of the arms a, b and c, and a function that scores an arm on the first N of
    eight questions."""
    from support.questions import ROWS, write

    for seed in range(2):
        for arm in "abc":
            planted(template, arm, seed, 5.0 + 0.01 * seed)
    Path("questions").mkdir()
    rows = [ROWS["piqa"] | {"goal": f"dry cup {i}"} for i in range(8)]
    write(Path("questions"), "piqa_validation.jsonl", rows)

    def score(limit: int, *targets: str) -> None:
        options = ["--study", "s", "--data-dir", "questions", "--tasks", "piqa"]
        assert run_main(capsys, "eval", *targets, *options, "--limit", str(limit))[0] == 0

    return score


def shown(found: dict) -> dict[str, set[int]]:
    """Over how many questions the scores of each arm are."""
    counts: dict[str, set[int]] = {}
    for row in found["tasks"]:
        counts.setdefault(row["arm"], set()).add(row["n"])
    return counts


def test_tasks_are_compared_over_the_same_questions(capsys, quiz):
    quiz(8, "a", "b")
    code, out, _ = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert code == 0
    assert "piqa acc_norm" in out
    assert "Paired differences from a" in out
    found = compared(capsys, "a", "b")
    # The same weights: the paired difference is nothing, and has no interval.
    paired = [row["paired"] for row in found["tasks"] if row["arm"] == "b"]
    assert paired
    assert all(pair["interval"] == {"mean": 0.0, "interval": None} for pair in paired)
    assert found["task_notes"] == []
    shutil.rmtree(Path("results/s/b-s1/items"))
    found = compared(capsys, "a", "b")
    assert "lacks the 8 questions" in found["tasks"][-1]["paired"]["problem"]
    code, out, err = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert code == 0
    assert "not compared" in out
    assert err.count("lacks the 8 questions") == 1


def test_of_several_limits_the_largest_that_all_arms_share_is_shown(capsys, quiz):
    quiz(3, "a", "b")
    quiz(5, "a", "b")
    found = compared(capsys, "a", "b")
    assert shown(found) == {"a": {5}, "b": {5}}
    assert found["task_notes"] == []
    assert "(2)" not in run_main(capsys, "compare", "a", "b", "--study", "s")[1]
    # One run has more: questions that the other lacks are reported, not shown.
    quiz(8, "a-s0")
    found = compared(capsys, "a", "b")
    assert shown(found) == {"a": {5}, "b": {5}}
    (note,) = found["task_notes"]
    assert note == (
        "piqa, validation split: 8 questions were not scored with every run of a and b; "
        "shown are the 5 that all have. For more: smolctl eval a b --tasks piqa --study s"
    )
    _, out, err = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert note in err
    assert "5 of 8" in out
    assert "3 of 8" not in out
    quiz(8, "a", "b")
    assert shown(compared(capsys, "a", "b")) == {"a": {8}, "b": {8}}


def test_arms_that_share_no_questions_each_show_their_own(capsys, quiz):
    quiz(5, "a", "b")
    quiz(3, "c")
    found = compared(capsys, "a", "b", "c")
    assert shown(found) == {"a": {5}, "b": {5}, "c": {3}}
    assert "shown are 5 for a, 5 for b, 3 for c" in found["task_notes"][0]
    pairs = {row["arm"]: row["paired"] for row in found["tasks"]}
    assert pairs["b"]["interval"]
    assert pairs["c"] is None


def test_one_scored_run_of_each_arm_is_compared(capsys, quiz):
    quiz(5, "a-s0", "b-s0")
    found = [row for row in compared(capsys, "a", "b")["tasks"] if row["arm"] == "b"]
    assert found
    assert all(row["paired"]["interval"] for row in found)
    quiz(5, "b-s1")  # one run of a, two of b
    found = [row for row in compared(capsys, "a", "b")["tasks"] if row["arm"] == "b"]
    assert [row["paired"] for row in found] == [None] * len(found)
    _, out, _ = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert "Paired differences" not in out
    acc = next(line for line in out.splitlines() if "piqa acc " in line)
    assert "1 or 2" in acc
    assert [acc.count(f"({runs})") for runs in (1, 2)] == [1, 1]  # behind the score that it is of


def test_the_card_shows_one_number_of_questions(capsys, quiz):
    quiz(3, "a", "b", "c")
    quiz(5, "a", "b", "c")
    quiz(8, "a")
    code, card, err = run_main(capsys, "report", "--study", "s", "--appendix", "appendix.md")
    assert code == 0
    card += Path("appendix.md").read_text()
    assert "5 of 8" in card
    assert "3 of 8" not in card
    note = "shown are the 5 that all have. For more: smolctl eval b c --tasks piqa --study s"
    assert note in card
    assert note in err


def test_the_hub_gets_the_number_of_questions(capsys, quiz):
    from huggingface_hub import ModelCard

    quiz(5, "a")
    for path in Path("results/s").glob("[bc]-*"):
        shutil.rmtree(path)
    code, card, _ = run_main(capsys, "report", "--study", "s")
    assert code == 0
    results = [r for r in ModelCard(card).data.eval_results if r.dataset_type == "piqa"]
    assert len(results) == 3
    assert all("first 5 of 8" in result.dataset_name for result in results)


def test_a_score_that_its_items_do_not_give_is_named(capsys, quiz):
    quiz(5, "a", "b")
    run = Run(Path("results/s/b-s1"))
    rows = run.rows("eval")
    (row,) = (row for row in rows if row["metric"] == "acc")
    true = row["value"]
    row["value"] = str(float(true) + 0.1)
    run.replace("eval", rows)
    found = compared(capsys, "a", "b")
    pairs = {row["metric"]: row["paired"] for row in found["tasks"] if row["arm"] == "b"}
    assert pairs["acc"]["interval"] is None
    assert pairs["acc_norm"]["interval"]
    (note,) = found["task_notes"]
    assert "acc of piqa in b-s1/eval.csv is" in note
    command = "smolctl eval b-s1 --tasks piqa --limit 5 --study s"
    assert note.endswith(f"Score again: {command}")
    assert run_main(capsys, *command.split()[1:], "--data-dir", "questions")[0] == 0
    assert compared(capsys, "a", "b")["task_notes"] == []


def test_a_task_with_an_empty_cell_excludes_its_run(capsys, quiz):
    quiz(3, "a", "b")
    run = Run(Path("results/s/b-s1"))
    rows = run.rows("eval")
    rows[-1]["fingerprint"] = ""
    run.replace("eval", rows)
    (reason,) = compared(capsys, "a", "b")["excluded"]
    assert "b-s1/eval.csv has a task with an empty cell" in reason
