"""Numbers as text: a value and its standard error."""

import pytest

from adadiff.utils.text import with_error


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (4.2049, 0.0416, "4.205 ± 0.042"),
        (0.00752, 0.000121, "0.00752 ± 0.00012"),
        (0.0000752, 0.0000121, "(7.5 ± 1.2)e-5"),
        (123.4, 12.3, "123 ± 12"),
        (0.5, 0.0, "0.5 ± 0"),
    ],
)
def test_figures_are_given_to_two_digits_of_their_error(value, error, words):
    assert with_error(value, error) == words
