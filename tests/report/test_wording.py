"""Numbers and names as text."""

import pytest

from smolctl.report.wording import seeds_text


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([3], "3"),
        ([0, 1, 2, 3, 4], "0, 1, 2, 3, 4"),
        (list(range(50)), "0 to 49"),
        (list(range(0, 100, 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16 and 41 more"),
    ],
)
def test_many_seeds_are_few_words(seeds, text):
    assert seeds_text(seeds) == text
