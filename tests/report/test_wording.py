"""Numbers and names as text."""

import pytest

from smolctl.report.wording import briefly, names_text, seeds_text


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1], "0, 1"),
        ([2, 0, 1, 5], "0-2, 5"),
        (range(50), "0-49"),
        (range(0, 100, 2), "0, 2, 4, 6, 8, 10, 12, 14, 16 and 41 more"),
    ],
)
def test_many_seeds_are_few_words(seeds, text):
    assert seeds_text(seeds) == text


def test_many_names_are_few_words():
    assert names_text(["a-s0", "a-s1", "b"]) == "a-s0, a-s1 and b"
    names = [*(f"a-s{seed}" for seed in range(9)), "b-c-s4", "first", "last"]
    assert names_text(names) == "9 runs of a (seeds 0-8), 1 run of b-c (seed 4) and first, last"
    assert names_text([f"run{n}" for n in range(50)]).endswith("run7 and 42 more")


def test_sentences_that_say_the_same_of_many_runs_become_one():
    three = [f"a-s{seed} is excluded: it failed." for seed in range(3)]
    assert briefly(three) == three
    many = [f"a-s{seed} is out. Resume a-s{seed}." for seed in range(12)]
    other = "b-s0 is out. Resume c."
    assert briefly([*many[:5], other, *many[5:]]) == [
        "a-s0 is out. Resume a-s0. So with 11 runs of a (seeds 1-11).",
        other,
    ]
