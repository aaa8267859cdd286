"""Released checkpoints against a reference that computes from their tensors by their names alone."""

import math

import pytest
import torch
from torch import Tensor

from adadiff import InputError, PatienceExit, ThresholdExit
from adadiff.conversion import from_released, read_released, to_released
from tests.conftest import make_model, predict

HEADS = 2


# ---------------------------------------------------------------------------------------------------------------------
# The reference: the released network, from its state dict, the slow way


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    product = torch.einsum("btc,dc->btd", x, weights[f"{name}.weight"])
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(2, keepdim=True)
    scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    width = x.shape[2]
    size = width // HEADS
    qkv = linear(x, weights, f"{name}.qkv")
    outputs = []
    for head in range(HEADS):
        q, k, v = (qkv[:, :, part * width + head * size :][:, :, :size] for part in range(3))
        outputs.append(((q @ k.transpose(1, 2)) / math.sqrt(size)).softmax(2) @ v)
    return linear(torch.cat(outputs, 2), weights, f"{name}.proj")


def block(x: Tensor, weights: dict[str, Tensor], name: str, skip: Tensor | None = None) -> Tensor:
    if skip is not None:
        x = linear(torch.cat([x, skip], 2), weights, f"{name}.skip_linear")
    x = x + attention(norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn")
    hidden = linear(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(gelu, weights, f"{name}.mlp.fc2")


def unpatchify(patches: Tensor, channels: int, p: int) -> Tensor:
    side = math.isqrt(patches.shape[1])
    images = torch.empty(len(patches), channels, side * p, side * p)
    for row in range(side):
        for column in range(side):
            patch = patches[:, row * side + column].reshape(-1, p, p, channels)
            images[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = patch.permute(0, 3, 1, 2)
    return images


def reference(weights: dict[str, Tensor], sample: Tensor, time: Tensor, label=None, context=None):
    """Every layer's prediction, and the certainty where there are estimators."""
    channels, p = weights["patch_embed.proj.weight"].shape[1:3]
    kernels = torch.nn.functional.unfold(sample, p, stride=p).transpose(1, 2)
    x = kernels @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    width = x.shape[2]
    angles = time[:, None] * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    token = torch.cat([angles.cos(), angles.sin()], 1)[:, None]
    if "time_embed.0.weight" in weights:
        hidden = linear(token, weights, "time_embed.0")
        token = linear(hidden * torch.sigmoid(hidden), weights, "time_embed.2")
    tokens = [token, x] if context is None else [token, linear(context, weights, "context_embed"), x]
    if label is not None:
        tokens = [weights["label_emb.weight"][label][:, None], *tokens]
    patches = x.shape[1]
    x = torch.cat(tokens, 1) + weights["pos_embed"]

    half = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("in_blocks"))
    skips, predictions, certainties = [], [], []
    for i in range(2 * half + 1):
        if i < half:
            x = block(x, weights, f"in_blocks.{i}")
            skips.append(x)
        elif i == half:
            x = block(x, weights, "mid_block")
        else:
            x = block(x, weights, f"out_blocks.{i - half - 1}", skips.pop())
        pixels = unpatchify(linear(norm(x, weights, "norm"), weights, "decoder_pred")[:, -patches:], channels, p)
        if "final_layer.weight" in weights:
            pixels = torch.nn.functional.conv2d(
                pixels, weights["final_layer.weight"], weights["final_layer.bias"], padding=1
            )
        predictions.append(pixels)
        if "lte_classifer.0.lte.weight" in weights:
            certainty = torch.sigmoid(linear(x[:, -patches:], weights, f"lte_classifer.{i}.lte"))
            certainties.append(unpatchify(certainty, channels, p))
    return predictions, certainties


# ---------------------------------------------------------------------------------------------------------------------
# Released state dicts with random weights, shaped as the release shapes them


def released_weights(
    kind: str = "plain",
    estimators: bool = True,
    width: int = 16,
    half: int = 2,
    channels: int = 3,
    p: int = 2,
    context_length: int = 77,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def of(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    extra = {"class": 2, "text": 1 + context_length}.get(kind, 1)
    weights = {"pos_embed": of(1, extra + 16, width), "patch_embed.proj.weight": of(width, channels, p, p)}
    weights["patch_embed.proj.bias"] = of(width)
    if kind == "class":
        weights["label_emb.weight"] = of(5, width)
    if kind == "text":
        weights |= {"context_embed.weight": of(width, 6), "context_embed.bias": of(width)}
    if kind == "time_mlp":
        weights |= {"time_embed.0.weight": of(4 * width, width), "time_embed.0.bias": of(4 * width)}
        weights |= {"time_embed.2.weight": of(width, 4 * width), "time_embed.2.bias": of(width)}
    names = [*(f"in_blocks.{k}" for k in range(half)), "mid_block", *(f"out_blocks.{k}" for k in range(half))]
    for name in names:
        for part in ("norm1", "norm2"):
            weights |= {f"{name}.{part}.weight": 1 + of(width), f"{name}.{part}.bias": of(width)}
        weights[f"{name}.attn.qkv.weight"] = of(3 * width, width)
        for part, shape in (
            ("attn.proj", (width, width)),
            ("mlp.fc1", (4 * width, width)),
            ("mlp.fc2", (width, 4 * width)),
        ):
            weights |= {f"{name}.{part}.weight": of(*shape), f"{name}.{part}.bias": of(shape[0])}
        if name.startswith("out"):
            weights |= {f"{name}.skip_linear.weight": of(width, 2 * width), f"{name}.skip_linear.bias": of(width)}
    values = p * p * channels
    weights |= {"norm.weight": 1 + of(width), "norm.bias": of(width)}
    weights |= {"decoder_pred.weight": of(values, width), "decoder_pred.bias": of(values)}
    if kind != "no_conv":
        weights |= {"final_layer.weight": of(channels, channels, 3, 3), "final_layer.bias": of(channels)}
    if estimators:
        for k in range(2 * half + 1):
            weights |= {f"lte_classifer.{k}.lte.weight": of(values, width), f"lte_classifer.{k}.lte.bias": of(values)}
    return weights


def inputs(kind: str):
    torch.manual_seed(1)
    sample, time = torch.randn(4, 3, 8, 8), torch.tensor([1.0, 7.5, 400.0, 999.0])
    label = torch.tensor([0, 4, 2, 1]) if kind == "class" else None
    context = torch.randn(4, 77, 6) if kind == "text" else None
    return sample, time, label, context


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "class", "text", "time_mlp", "no_conv"])
def test_predictions_and_uncertainties_of_every_layer(kind):
    weights = released_weights(kind)
    model = from_released(weights, HEADS, {})
    predictions, certainties = reference(weights, *inputs(kind))
    with torch.no_grad():
        ours, uncertainties = model.all_exits(*inputs(kind))
    torch.testing.assert_close(ours, torch.stack(predictions), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(uncertainties, 1 - torch.stack(certainties), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.35, 0.45, 0.5, 0.55])
def test_exits_at_one_minus_the_threshold(threshold):
    """As the released sampler decides at batch size 1: certainty above the threshold; in the first half the second."""
    weights = released_weights()
    model = from_released(weights, HEADS, {})
    predictions, certainties = reference(weights, *inputs("plain"))
    means = torch.stack([certainty.mean((1, 2, 3)) for certainty in certainties])
    sample, time, _, _ = inputs("plain")
    for patient, policy in (
        (False, ThresholdExit(1 - threshold)),
        (True, PatienceExit(1 - threshold, patience=2, last_patient_layer=2)),
    ):
        with torch.no_grad():
            output = predict(model, sample, time, policy=policy)
        for k in range(4):
            passing = [i for i in range(5) if means[i, k] > threshold]
            if patient and passing and passing[0] < 2:
                passing = passing[1:]
            layer = min([*passing, 4])
            assert output.exit_layers[k] == layer + 1
            torch.testing.assert_close(output.sample[k], predictions[layer][k], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "class", "text", "time_mlp", "no_conv"])
@pytest.mark.parametrize("estimators", [True, False])
def test_back_again(kind, estimators):
    weights = released_weights(kind, estimators)
    model = from_released(weights, HEADS, {})
    assert model.config.estimator_type == ("token" if estimators else "concat")
    back = to_released(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_heads_per_layer_have_no_place_there():
    with pytest.raises(InputError, match="one output head for all layers"):
        to_released(make_model(head_type="per_layer"))


def broken(**changes: Tensor | None) -> dict[str, Tensor]:
    weights = released_weights() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": torch.zeros(1)}, "not the weights of a released U-ViT"),
        (broken(mid_block__norm1__weight=None), "mid_block.norm1.weight is missing"),
        (broken(mid_block__attn__qkv__bias=torch.zeros(48)), "mid_block.attn.qkv.bias is unknown"),
        (broken(norm__bias=torch.zeros(3)), r"norm.bias has shape \(3,\), not \(16,\)"),
        (broken(pos_embed=torch.zeros(1, 19, 16)), "19 tokens"),
        (broken(pos_embed=torch.zeros(16)), "not the weights"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, message):
    with pytest.raises(InputError, match=message):
        from_released(weights, HEADS, {})


class Surprise:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [Surprise(), {"a": Surprise()}, [torch.zeros(1)], {"a": {"b": torch.zeros(1)}}])
def test_a_file_is_not_executed(tmp_path, capsys, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="plain state dict"):
        read_released(tmp_path / "a.pth")
    assert "executed" not in capsys.readouterr().out


def test_a_damaged_or_missing_file(tmp_path):
    torch.save(released_weights(), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_released(tmp_path / "b.pth")
    with pytest.raises(InputError, match="there is no file"):
        read_released(tmp_path / "c.pth")
