"""U-ViT against a slow, obvious version of the paper's figure 1."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adadiff import InputError
from adadiff.backbones import UViT
from adadiff.backbones.base import unpatchify


def make_uvit(**settings) -> UViT:
    torch.manual_seed(0)
    sizes = {"sample_size": (8, 8), "in_channels": 2, "patch_size": 2, "width": 16, "depth": 5, "num_heads": 2}
    backbone = UViT.from_settings(**{**sizes, **settings}).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def reference_layer(w: dict[str, Tensor], x: Tensor, num_heads: int) -> Tensor:
    """One pre-norm layer for one sample, (tokens, width), head by head."""
    width = x.shape[1]
    qkv = F.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"]) @ w["attn.qkv.weight"].T
    inner = qkv.shape[1] // 3
    size = inner // num_heads
    heads = []
    for h in range(num_heads):
        q, k, v = (qkv[:, part * inner + h * size : part * inner + (h + 1) * size] for part in range(3))
        heads.append(torch.softmax(q @ k.T / math.sqrt(size), dim=1) @ v)
    x = x + torch.cat(heads, dim=1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    hidden = F.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"]) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def reference_uvit(backbone: UViT, image: Tensor, t: float, label: int | None, context: Tensor | None) -> Tensor:
    """U-ViT for one image, (channels, height, width), patch by patch and layer by layer."""
    w = backbone.state_dict()
    p, width, depth = backbone.patch_size, backbone.width, backbone.depth
    num_heads = backbone.layers[0].attn.num_heads
    channels, height, columns = image.shape
    patches = [
        (w["patch_embed.weight"] * image[None, :, r : r + p, c : c + p]).sum((1, 2, 3)) + w["patch_embed.bias"]
        for r in range(0, height, p)
        for c in range(0, columns, p)
    ]
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    time = torch.cat([torch.cos(t * frequencies), torch.sin(t * frequencies)])
    if "time_embed.0.weight" in w:
        time = F.silu(time @ w["time_embed.0.weight"].T + w["time_embed.0.bias"])
        time = time @ w["time_embed.2.weight"].T + w["time_embed.2.bias"]
    extras = [time]
    if label is not None:
        extras = [w["class_embed.weight"][label], *extras]
    if context is not None:
        extras += list(context @ w["context_embed.weight"].T + w["context_embed.bias"])
    x = torch.stack([*extras, *patches]) + w["position"][0]

    outputs: dict[int, Tensor] = {}
    for i in range(1, depth + 1):
        layer = {k.removeprefix(f"layers.{i - 1}."): v for k, v in w.items() if k.startswith(f"layers.{i - 1}.")}
        if i > depth // 2 + 1:
            x = torch.cat([x, outputs[depth + 1 - i]], dim=1) @ layer["skip_linear.weight"].T
            x = x + layer["skip_linear.bias"]
        x = outputs[i] = reference_layer(layer, x, num_heads)

    x = x[len(extras) :]
    pixels = F.layer_norm(x, (width,), w["head.norm.weight"], w["head.norm.bias"]) @ w["head.linear.weight"].T
    pixels = pixels + w["head.linear.bias"]
    result = torch.zeros(channels, height, columns)
    for number, values in enumerate(pixels):
        r, c = divmod(number, columns // p)
        result[:, r * p : (r + 1) * p, c * p : (c + 1) * p] = values.reshape(p, p, channels).permute(2, 0, 1)
    if "head.conv.weight" in w:
        result = F.conv2d(result[None], w["head.conv.weight"], w["head.conv.bias"], padding=1)[0]
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sample_size": (4, 12), "patch_size": 4, "depth": 3},
        {"time_mlp": True, "final_conv": False},
        {"num_heads": 3, "head_dim": 4, "mlp_ratio": 1.7},
        {"num_classes": 3},
        {"context_dim": 6, "context_length": 4},
        {"num_classes": 3, "context_dim": 6, "context_length": 4, "depth": 1},
    ],
    ids=["plain", "oblong", "time mlp, no conv", "pruned", "classes", "text", "classes and text"],
)
def test_forward_is_the_obvious_uvit(settings):
    backbone = make_uvit(**settings)
    images = torch.randn(3, 2, *backbone.sample_size)
    times = torch.tensor([0.0, 17.5, 999.0])
    labels = torch.tensor([0, 2, 1]) if backbone.num_classes else None
    context = torch.randn(3, *backbone.context_shape) if backbone.context_shape else None
    with torch.no_grad():
        got = backbone(images, times, labels, context)
        for k in range(3):
            wanted = reference_uvit(
                backbone,
                images[k],
                times[k].item(),
                None if labels is None else int(labels[k]),
                None if context is None else context[k],
            )
            torch.testing.assert_close(got[k], wanted, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 5), st.data())
def test_samples_dropped_anywhere_leave_the_others_unchanged(batch, data):
    backbone = make_uvit(depth=7)
    images, times = torch.randn(batch, 2, 8, 8), torch.rand(batch) * 1000
    with torch.no_grad():
        whole = backbone(images, times)
        state = backbone.embed(images, times)
        remaining = list(range(batch))
        for i in range(1, 8):
            state = backbone.layer(i, state)
            kept = data.draw(st.lists(st.sampled_from(range(len(remaining))), unique=True, min_size=1), label="kept")
            state = state.select(torch.tensor(kept))
            remaining = [remaining[place] for place in kept]
        prediction = backbone.head(backbone.patch_tokens(state))
    torch.testing.assert_close(prediction, whole[remaining], rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    from tests.conftest import make_model

    model = make_model()
    images, times = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    gradients = []
    for switch in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        switch()
        model.zero_grad()
        model.all_exits(images, times)[0].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.backbone.parameters()]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_unpatchify_puts_every_pixel_in_its_place():
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = torch.stack(
        [image[0, :, r : r + 2, c : c + 2].permute(1, 2, 0).flatten() for r in (0, 2) for c in (0, 2, 4)]
    )
    assert torch.equal(unpatchify(patches[None], (4, 6), 2), image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_size": (8, 9)}, "cannot be cut into patches"),
        ({"sample_size": (1, 1)}, "cannot be cut into patches"),
        ({"depth": 4}, "odd depth"),
        ({"num_heads": 3}, "heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        make_uvit(**settings)


def test_inputs_that_do_not_fit_are_named():
    backbone = make_uvit(num_classes=3)
    with pytest.raises(InputError, match=r"\(2, 8, 8\)"):
        backbone(torch.zeros(1, 2, 8, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="needs class_labels"):
        backbone(torch.zeros(1, 2, 8, 8), torch.zeros(1))
