"""How a model is meant to be sampled, beside it."""

import pytest

from adadiff import InputError
from adadiff.sampling.defaults import SamplingDefaults


def test_they_come_back_and_are_the_usual_ones_where_none_are(tmp_path):
    assert SamplingDefaults.load(tmp_path) == SamplingDefaults()
    chosen = SamplingDefaults(scheduler="unipc", steps=7, tau=0.2, guidance_scale=1.5)
    chosen.save(tmp_path)
    assert SamplingDefaults.load(tmp_path) == chosen


@pytest.mark.parametrize("text", ["{", "[1]", '{"stepz": 3}', '{"steps": "many"}'])
def test_others_are_refused(tmp_path, text):
    (tmp_path / "sampling.json").write_text(text)
    with pytest.raises(InputError, match=r"sampling\.json"):
        SamplingDefaults.load(tmp_path)
