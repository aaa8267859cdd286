"""Which transformers are recognised, which are refused, and what the refusals say."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

import adadiff
from adadiff import FixedExit, InputError
from adadiff.stock import FAMILIES, REFUSED
from adadiff.stock.families import TIME_NAMES, check_arguments
from adadiff.stock.recorder import ExitRecorder
from adadiff.stock.switch import recording
from tests.conftest import REPOSITORY
from tests.stock import tiny as pipelines
from tests.stock.tiny import build


def transformer_classes() -> dict[str, type[nn.Module]]:
    """All transformers of this diffusers, by the name of their class."""
    package = diffusers.models.transformers
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]
    return {
        name: cls
        for module in modules
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and cls.__module__ == module.__name__
        and issubclass(cls, diffusers.ModelMixin)
        and "forward" in vars(cls)
    }


CLASSES = transformer_classes()


def test_every_transformer_of_diffusers_is_recognised_or_refused():
    """A new class belongs in `FAMILIES` if its blocks can be cut, else in `REFUSED`, and in docs/stock.md."""
    assert CLASSES.keys() - FAMILIES.keys() - REFUSED.keys() == set()
    assert FAMILIES.keys() & REFUSED.keys() == set()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lists_of_a_family_are_looped_over_in_its_source(name: str):
    if name not in CLASSES:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    cls, family = CLASSES[name], FAMILIES[name]
    source = "".join(inspect.getsource(each) for each in cls.__mro__ if each.__module__ == cls.__module__)
    for attribute in [each for group in family.layers for each in group.split("+")] + list(family.refiners):
        assert re.search(rf"self\.{attribute} = nn\.ModuleList", source)
        assert re.search(rf"[ (]self\.{attribute}\b(?! =|[.\[])", source)  # whole: neither indexed nor assigned to
    assert set(TIME_NAMES) & inspect.signature(cls.forward).parameters.keys()


def test_the_documentation_names_every_class():
    page = (REPOSITORY / "docs/stock.md").read_text()
    families = page.split("\n## Families")[1].split("\n## ")[0]
    tried, recognised, refused = families.split("\n### ")[1:]
    classes = {type(build(name).transformer).__name__ for name in pipelines.FAMILIES}
    assert classes == set(re.findall(r"`(\w+)`", tried))
    assert FAMILIES.keys() - classes == set(re.findall(r"`(\w+)`", recognised))
    assert REFUSED.keys() == set(re.findall(r"^\| `(\w+)`", refused, flags=re.MULTILINE))


class Custom(diffusers.ModelMixin, ConfigMixin):
    """A model of a class that diffusers does not have."""

    @register_to_config
    def __init__(self, lists: tuple[str, ...] = ("my_blocks",)) -> None:
        super().__init__()
        for name in lists:
            setattr(self, name, nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        for name in self.config.lists:
            for block in getattr(self, name):
                sample = block(sample)
        return sample


class CustomPipeline(diffusers.DiffusionPipeline):
    """Samples with a custom transformer."""

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        self.scheduler.set_timesteps(4)
        sample = torch.ones(1, 4)
        for time in self.scheduler.timesteps:
            sample = self.scheduler.step(self.transformer(sample, time), time, sample).prev_sample
        return sample


def custom(*lists: str) -> CustomPipeline:
    torch.manual_seed(0)
    return CustomPipeline(Custom(lists).eval(), diffusers.DDIMScheduler())


def test_an_unknown_model_runs_with_the_lists_the_user_names():
    pipe = custom("first", "second")
    with pytest.raises(InputError, match=r'Custom is not .* knows: .*enable\(pipe, policy, layers=\("my_blocks",\)\)'):
        adadiff.enable(pipe, FixedExit(4))
    with pytest.raises(InputError, match="no list of blocks 'frist': its lists are first, second"):
        adadiff.enable(pipe, FixedExit(4), layers=("frist",))
    with pytest.raises(InputError, match="a list of blocks is named twice: first, first"):
        adadiff.enable(pipe, FixedExit(4), layers=("first", "first"))
    adadiff.enable(pipe, FixedExit(2), layers="first")
    assert adadiff.trace(pipe).calls == ()
    adadiff.enable(pipe, FixedExit(4), layers=("first", "second"))
    cut = pipe()
    adadiff.disable(pipe)
    pipe.transformer.second = pipe.transformer.second[:1]
    assert torch.equal(pipe(), cut)


class Indexing(Custom):
    """Runs its blocks by their numbers."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        for number in range(len(self.first)):
            sample = self.first[number](sample)
        return sample


def test_a_model_that_does_not_loop_over_its_blocks_is_refused():
    pipe = CustomPipeline(Indexing(("first",)).eval(), diffusers.DDIMScheduler())
    recorder = ExitRecorder((1, 2), 2, samples=1)
    with recording(pipe, recorder, layers=("first",)), pytest.raises(InputError, match="does not loop over first"):
        pipe()


def test_an_unknown_model_is_recognised_by_the_usual_names():
    pipe = custom("blocks")
    adadiff.enable(pipe, FixedExit(1))
    cut = pipe()
    adadiff.disable(pipe)
    pipe.transformer.blocks = pipe.transformer.blocks[:1]
    assert torch.equal(pipe(), cut)


def test_blocks_replaced_while_enabled_are_those_that_run():
    pipe = custom("blocks")
    adadiff.enable(pipe, FixedExit(1))
    before = pipe()
    replacement = nn.Linear(4, 4)
    pipe.transformer.blocks[0] = replacement
    after = pipe()
    assert not torch.equal(after, before)
    pipe.transformer.blocks = nn.ModuleList([replacement])
    assert torch.equal(pipe(), after)
    adadiff.disable(pipe)
    assert torch.equal(pipe(), after)


def test_refused_models_say_why():
    unet = diffusers.UNet2DModel(
        8, block_out_channels=(4,), norm_num_groups=2, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    cases = [
        (diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()), "has a U-Net"),
        (object(), "object is not a diffusers pipeline with a transformer"),
        (CustomPipeline(nn.Linear(2, 2), diffusers.DDIMScheduler()), "Linear is not a transformer that adadiff knows"),
        (
            CustomPipeline(type("T5FilmDecoder", (nn.Module,), {})(), diffusers.DDIMScheduler()),
            "T5FilmDecoder cannot be cut to fewer layers: it is called at no time step",
        ),
        (adadiff.AdaDiffPipeline.from_pretrained("digits"), "a pipeline of adadiff's own"),
        (custom("blocks"), "exit layer is 4: the model's layers are numbered 1 to 3"),
    ]
    for pipe, message in cases:
        with pytest.raises(InputError, match=message):
            adadiff.enable(pipe, FixedExit(4))
    for policy in (0.5, None, FixedExit):
        with pytest.raises(InputError, match=f"{policy!r} is no exit policy"):
            adadiff.enable(custom("blocks"), policy)
    model = type("Timeless", (nn.Module,), {"forward": lambda self, sample: sample})()
    model.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(InputError, match=r"Timeless takes no time step \(timestep, timesteps, t\)"):
        adadiff.enable(CustomPipeline(model, diffusers.DDIMScheduler()), FixedExit(1))


def test_caches_of_keys_and_values_are_refused():
    with pytest.raises(InputError, match="kv_cache cannot be given while adadiff is enabled"):
        check_arguments(FAMILIES["Flux2Transformer2DModel"], {"hidden_states": None, "kv_cache": object()})
    check_arguments(FAMILIES["Flux2Transformer2DModel"], {"hidden_states": None, "kv_cache": None})
