"""DuoDiff: which network predicts which step."""

import pytest
import torch

from adadiff import InputError
from adadiff.baselines import DuoDiff
from tests.conftest import make_model, predict


@torch.no_grad()
def test_the_shallow_network_predicts_the_first_steps():
    model, shallow = make_model(depth=5), make_model(depth=3, seed=1)
    session = DuoDiff(model, shallow, switch=2).session(2)
    sample = torch.randn(2, 1, 8, 8)
    for step in range(4):
        output = predict(session, sample, 300.0, step=step)
        network = shallow if step < 2 else model
        torch.testing.assert_close(output.sample, network(sample, torch.tensor(300.0)).sample)
        assert output.exit_layers.tolist() == [network.depth] * 2
        assert output.flops.tolist() == [network.part_flops.full] * 2
        assert output.uncertainties.shape == (2, 5)


@torch.no_grad()
def test_the_shallow_network_follows_the_samples_to_their_device():
    baseline = DuoDiff(make_model(depth=5).to("meta"), make_model(depth=3), switch=1)
    output = predict(baseline.session(2), torch.randn(2, 1, 8, 8, device="meta"), torch.tensor(300.0, device="meta"))
    assert output.sample.device == baseline.shallow.device == torch.device("meta")


def test_networks_for_different_tasks_are_refused():
    with pytest.raises(InputError, match="other images or conditions"):
        DuoDiff(make_model(), make_model(depth=3, num_classes=4), switch=1)
    with pytest.raises(InputError, match="at least 0"):
        DuoDiff(make_model(), make_model(depth=3), switch=-1)
