"""Classes by name or by index."""

import numpy as np
import pytest

from adadiff import InputError
from adadiff.conditioning import class_indices

NAMES = ["cat", "dog", "owl"]
NUMERIC = ["1", "10", "2", "3"]  # in the order of their folders


def test_names_and_indices():
    assert class_indices(["dog", 0, np.int64(2)], 4, NAMES, 3) == [1, 0, 2]
    assert class_indices([1], 2, None) == [1]


def test_a_name_is_not_an_index():
    assert class_indices(["1", "10", "2", "3"], 5, NUMERIC, 4) == [0, 1, 2, 3]
    assert class_indices([1, 2, 3], 5, NUMERIC, 4) == [1, 2, 3]
    with pytest.raises(InputError, match=r"no class named '0' .* an int, or --class-index 0"):
        class_indices(["0"], 5, NUMERIC, 4)


@pytest.mark.parametrize(
    ("entry", "names", "message"),
    [
        ("dgo", NAMES, "did you mean dog"),
        ("xyz", NAMES, "choose one of cat, dog, owl"),
        ("dog", None, "have no names"),
        ("1", None, "--class-index"),
        (3, NAMES, "class 3 is the null class, which cannot be requested: choose from 0 to 2"),
        (4, NAMES, "0 to 2"),
        (-1, NAMES, "0 to 2"),
        (True, NAMES, "True is not a class"),
        (np.bool_(True), NAMES, "is not a class"),
        (1.0, NAMES, "1.0 is not a class"),
        ([1], NAMES, r"\[1\] is not a class"),
    ],
)
def test_other_classes_are_refused(entry, names, message):
    with pytest.raises(InputError, match=message):
        class_indices([entry], 4, names, 3)
