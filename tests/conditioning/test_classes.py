"""Classes by name or number."""

import pytest

from adadiff import InputError
from adadiff.conditioning import class_indices

NAMES = ["cat", "dog", "owl"]


def test_names_and_numbers():
    assert class_indices(["dog", 0, "2", 3], 4, NAMES) == [1, 0, 2, 3]
    assert class_indices([1], 2, None) == [1]


@pytest.mark.parametrize(
    ("entry", "names", "message"),
    [
        ("dgo", NAMES, "did you mean dog"),
        ("xyz", NAMES, "choose one of cat, dog, owl"),
        ("dog", None, "have no names"),
        (4, NAMES, "0 to 3"),
        (-1, NAMES, "0 to 3"),
        ("17", NAMES, "0 to 3"),
    ],
)
def test_unknown_classes_are_named(entry, names, message):
    with pytest.raises(InputError, match=message):
        class_indices([entry], 4, names)
