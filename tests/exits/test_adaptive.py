"""AdaptiveModel as a model of diffusers: called, saved, loaded, damaged."""

import pytest
import torch

from adadiff import AdaptiveModel, InputError
from tests.conftest import make_model


def test_a_call_runs_all_layers_bit_for_bit_as_the_backbone(model):
    images, times = torch.randn(6, 1, 8, 8), torch.rand(6) * 1000
    with torch.no_grad():
        assert torch.equal(model(images, times).sample, model.backbone(images, times))
        assert torch.equal(model(images, 7, return_dict=False)[0], model.backbone(images, torch.full((6,), 7)))


@pytest.mark.parametrize("head", ["shared", "per_layer"])
def test_the_last_exit_is_the_models_prediction(head):
    model = make_model(head_type=head)
    images, times = torch.randn(3, 1, 8, 8), torch.rand(3) * 1000
    with torch.no_grad():
        assert torch.equal(model.all_exits(images, times)[0][-1], model(images, times).sample)


def test_arguments_go_by_name_so_that_the_config_holds_them():
    with pytest.raises(TypeError, match="positional"):
        AdaptiveModel(8, 1)


def test_saved_and_loaded_it_predicts_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AdaptiveModel.from_pretrained(tmp_path)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images, 7).sample, model(images, 7).sample)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    assert AdaptiveModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: truncate(folder / "diffusion_pytorch_model.safetensors"), "truncated or altered"),
        (lambda folder: flip_a_byte(folder / "diffusion_pytorch_model.safetensors"), "truncated or altered"),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "missing"),
        (lambda folder: edit(folder / "config.json", '"depth": 5', '"depth": 7'), "do not fit"),
        (lambda folder: edit(folder / "config.json", '"depth": 5', '"depth": 3'), "do not fit"),
        (lambda folder: edit(folder / "config.json", '"width": 16', '"width": 32'), "cannot be loaded"),
        (lambda folder: edit(folder / "config.json", '"uvit"', '"uvitt"'), "did you mean uvit"),
    ],
    ids=["no config", "truncated", "altered", "no weights", "deeper", "shallower", "wider", "unknown backbone"],
)
def test_damaged_folders_are_named(model, tmp_path, damage, message):
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    if "edit" in damage.__code__.co_names:  # a change of the user's own
        (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=message) as caught:
        AdaptiveModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
