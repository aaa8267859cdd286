"""The objective against the forward process written out."""

import pytest
import torch

from adadiff.exits.losses import joint_loss
from adadiff.training.config import DiffusionConfig, LossConfig
from adadiff.training.objective import JointObjective
from tests.conftest import make_model


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_of_a_batch(prediction_type):
    model = make_model()
    images, noise, time = (
        torch.rand(4, 1, 8, 8) * 2 - 1,
        torch.randn(4, 1, 8, 8),
        torch.tensor([0.0, 0.3, 0.77, 0.9999]),
    )
    objective = JointObjective(model, DiffusionConfig(prediction_type=prediction_type).build(), LossConfig())
    got = objective(images, noise, time)

    steps = torch.tensor([0, 300, 770, 999])
    abar = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)[steps].float()[
        :, None, None, None
    ]
    noisy = abar.sqrt() * images + (1 - abar).sqrt() * noise
    target = noise if prediction_type == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * images
    predictions, uncertainties = model.all_exits(noisy, steps)
    torch.testing.assert_close(
        got.loss.total, joint_loss(predictions, uncertainties, target).total, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        got.layer_errors, (predictions - target).square().mean((1, 2, 3, 4)), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(got.layer_uncertainties, uncertainties.mean((1, 2, 3, 4)), rtol=1e-4, atol=1e-4)


def test_alternating_leaves_the_layerwise_loss_out_at_every_second_step():
    model = make_model()
    objective = JointObjective(model, DiffusionConfig().build(), LossConfig(alternating=True, ual_weighting="uniform"))
    batch = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.6])
    for step in range(4):
        loss = objective(*batch, step=step).loss
        rest = loss.total - loss.simple - loss.uncertainty
        torch.testing.assert_close(rest, loss.layerwise * (step % 2), rtol=1e-4, atol=1e-5)
