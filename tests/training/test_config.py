"""The forward processes against their closed forms; a model's choices."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from adadiff import InputError
from adadiff.backbones import BackboneConfig, InputSpec, UViT, UViTConfig
from adadiff.conditioning import Condition
from adadiff.training.config import DiffusionConfig, ModelConfig, TrainConfig


def test_the_vp_sde_stands_where_its_closed_form_does():
    """abar(t) = exp(-0.1 t - 9.95 t^2), after step i at t = i / 1000."""
    scheduler = DiffusionConfig(beta_schedule="vp_sde").build()
    for step in (0, 1, 99, 499, 999):
        t = (step + 1) / 1000
        assert scheduler.alphas_cumprod[step].item() == pytest.approx(math.exp(-0.1 * t - 9.95 * t**2), rel=1e-3)
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(4.318e-5, rel=1e-3)


def test_on_the_vp_sde_the_network_sees_999_t():
    config = UViTConfig(width=12, depth=1, num_heads=3)
    seen = DiffusionConfig(beta_schedule="vp_sde").network_time()
    backbone = UViT(config, InputSpec((8, 8), 1, **seen))
    steps = torch.tensor([0.0, 499.0, 999.0])
    plain = UViT(config, InputSpec((8, 8), 1))
    plain.load_state_dict(backbone.state_dict())
    sample = torch.randn(3, 1, 8, 8)
    times = 999 * (steps + 1) / 1000
    torch.testing.assert_close(backbone.embed(sample, steps).time, plain.embed(sample, times).time)


def test_stable_diffusions_betas():
    """Square roots linear from 0.00085 to 0.0120."""
    scheduler = DiffusionConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.0120).build()
    roots = scheduler.betas.sqrt().double()
    first, last = math.sqrt(0.00085), math.sqrt(0.0120)
    for step in (0, 250, 999):
        assert roots[step].item() == pytest.approx(first + (last - first) * step / 999, rel=1e-5)


def test_a_backbones_choices_are_checked_by_name():
    config = TrainConfig(Path("run"), model=ModelConfig(UViTConfig(num_heads=0)))
    with pytest.raises(InputError, match=r"model\.backbone\.num_heads is 0: it must be"):
        config.check()


def test_a_backbones_choice_cannot_have_a_name_of_the_models():
    @dataclass(frozen=True)
    class Config(BackboneConfig):
        head: str = "wide"

    with pytest.raises(InputError, match="Config has a field head, as ModelConfig has"):
        ModelConfig(Config())


class NoClasses(Condition):
    def of(self, item):
        return {}

    def nothing(self):
        return {}


class Parity(NoClasses):
    reads, class_names = "class", ("even", "odd")


@pytest.mark.parametrize(
    ("condition", "num_classes", "message"),
    [
        ("clas", None, "no condition 'clas': did you mean class"),
        ("no.module:Parity", None, "there is no 'Parity' in a module 'no.module'"),
        ("pathlib:Path", None, "pathlib:Path is not a class derived from"),
        (f"{__name__}:NoClasses", None, "names no classes"),
        (f"{__name__}:Parity", 2, "num_classes is 2, but .* has 3"),
    ],
)
def test_conditions_that_are_none_are_named(condition, num_classes, message):
    model = ModelConfig(condition=condition, num_classes=num_classes)
    with pytest.raises(InputError, match=message):
        TrainConfig(Path("run"), model=model).check()


def test_a_condition_of_ones_own_says_which_classes_the_model_takes():
    config = ModelConfig(UViTConfig(width=12, depth=1), condition=f"{__name__}:Parity")
    model = config.build((1, 8, 8), {}, class_names=["zero", "one"])  # the data's, which it takes the place of
    assert (config.reads, model.backbone.num_classes) == ("class", 3)
    assert (model.config.class_names, model.config.null_class) == (["even", "odd"], 2)
