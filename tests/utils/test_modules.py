"""The name by which a class of the running script is imported elsewhere."""

from __future__ import annotations

import sys
import types

import pytest

from adadiff.utils.errors import InputError
from adadiff.utils.modules import is_own, module_of


@pytest.mark.parametrize(
    ("spec", "file", "wanted"),
    [
        (None, "/somewhere/my_vit.py", "my_vit"),
        (types.SimpleNamespace(name="package.my_vit"), "/somewhere/package/my_vit.py", "package.my_vit"),
        (None, None, "__main__"),
    ],
    ids=["script", "python -m", "interactive"],
)
def test_a_class_of_the_running_script_goes_by_the_scripts_name(monkeypatch, spec, file, wanted):
    main = types.ModuleType("__main__")
    main.__spec__ = spec
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert module_of(type("ViT", (), {"__module__": "__main__"})) == wanted


def test_other_classes_go_by_their_module():
    assert module_of(types.SimpleNamespace) == "types"
    assert (is_own(InputError), is_own(types.SimpleNamespace)) == (True, False)
