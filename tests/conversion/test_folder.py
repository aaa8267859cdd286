"""Released files to model folders that sample, and back, from the command line."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from adadiff import AdaDiffPipeline, InputError
from adadiff.cli import main
from adadiff.conversion import convert_to_folder
from tests.conditioning.conftest import make_clip
from tests.conversion.test_uvit import released_weights


def run(line: str) -> None:
    main(line.split())


def test_there_and_back(tmp_path, capsys):
    weights = released_weights("class")
    torch.save(weights, tmp_path / "nnet_ema.pth")
    run(f"convert {tmp_path}/nnet_ema.pth {tmp_path}/model --num-heads 2")
    assert "5 layers of width 16" in capsys.readouterr().out
    pipeline = AdaDiffPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.transformer.config.null_class == 4
    assert pipeline.transformer.config.backbone_config["time_scale"] == pytest.approx(0.999)
    guided = "--class-index 3 --guidance-scale 1.4"
    run(f"sample {tmp_path}/model -n 2 --steps 2 {guided} --tau 0.5 --out {tmp_path}/samples")
    run(f"convert {tmp_path}/model {tmp_path}/back.pth --to uvit")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_backbone_without_exits(tmp_path, capsys):
    torch.save(released_weights(estimators=False), tmp_path / "uvit.pth")
    run(f"convert {tmp_path}/uvit.pth {tmp_path}/model --num-heads 2")
    assert f"adadiff train PRESET --init-from {tmp_path}/model" in capsys.readouterr().out
    run(f"convert {tmp_path}/model {tmp_path}/back.pth --to uvit")
    assert "without its estimators" in capsys.readouterr().out


def test_text_and_latents(tmp_path):
    make_clip(tmp_path / "clip", length=77)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, **blocks).save_pretrained(
        tmp_path / "vae"
    )
    weights = released_weights("text", channels=4)
    weights["context_embed.weight"] = torch.randn(16, 8)
    torch.save(weights, tmp_path / "t2i.pth")
    parts = f"--vae {tmp_path}/vae --scaling-factor 0.2301 --text-encoder {tmp_path}/clip"
    run(f"convert {tmp_path}/t2i.pth {tmp_path}/model --num-heads 2 {parts}")
    pipeline = AdaDiffPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.vae.config.scaling_factor == 0.2301
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert not pipeline.scheduler.config.clip_sample
    assert pipeline.transformer.config.backbone_config["time_shift"] == 1
    pipeline(prompt="owl", num_inference_steps=2, guidance_scale=2)
    assert json.loads((tmp_path / "model/sampling.json").read_text())["steps"] == 50


def test_another_context_length_there_and_back(tmp_path, capsys):
    make_clip(tmp_path / "clip", length=9)
    weights = released_weights("text", context_length=9)
    weights["context_embed.weight"] = torch.randn(16, 8)
    torch.save(weights, tmp_path / "t2i.pth")
    command = f"convert {tmp_path}/t2i.pth {tmp_path}/model --num-heads 2 --text-encoder {tmp_path}/clip"
    with pytest.raises(SystemExit):
        run(command)
    assert "26 tokens, but 78 (77 of text; set --context-length if it has another number)" in capsys.readouterr().err
    run(f"{command} --context-length 9")
    pipeline = AdaDiffPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.text_encoder.shape == pipeline.transformer.backbone.context_shape == (9, 8)
    pipeline(prompt="owl", num_inference_steps=2, guidance_scale=2)
    run(f"convert {tmp_path}/model {tmp_path}/back.pth --to uvit")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_text_model_of_another_size_is_refused(tmp_path):
    make_clip(tmp_path / "clip", length=9)
    torch.save(released_weights("text"), tmp_path / "t2i.pth")
    with pytest.raises(InputError, match=r"9 features of width 8, but the network takes 77 of width 6"):
        convert_to_folder(tmp_path / "t2i.pth", tmp_path / "out", num_heads=2, text_encoder=str(tmp_path / "clip"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("convert {tmp}/a.pth {tmp}/out", "give --num-heads"),
        ("convert {tmp}/a.pth {tmp}/out --num-heads 3", "multiple of the number of heads"),
        ("convert {tmp}/a.pth {tmp}/out --preset cifar10-uvit-s", "width 16, not 512"),
        ("convert {tmp}/a.pth {tmp}/out --preset cifar10-uvit", "did you mean cifar10-uvit-s"),
        ("convert {tmp}/a.pth {tmp}/out --num-heads 0", "num_heads is 0"),
        ("convert {tmp}/a.pth {tmp}/out --num-heads 2 --scaling-factor nan", "scaling_factor is nan"),
        ("convert {tmp}/a.pth {tmp}/out --num-heads 2 --context-length 9", "takes no text: leave --context-length out"),
        ("convert {tmp}/b.pth {tmp}/out --num-heads 2", "there is no file"),
        ("convert {tmp}/a.pth {tmp} --num-heads 2", "already holds other files"),
        ("convert {tmp}/a.pth {tmp}/out --num-heads 2 --vae {tmp}/none", "AutoencoderKL"),
        ("convert {tmp}/a.pth {tmp}/out --num-heads 2 --text-encoder {tmp}/none", "text model"),
        ("convert {tmp}/none {tmp}/out.pth --to uvit", "no model folder"),
        ("convert digit {tmp}/out.pth --to uvit", "did you mean digits"),
        ("convert {tmp}/none {tmp}/a.pth --to uvit", "exists already"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, command, message):
    torch.save(released_weights(), tmp_path / "a.pth")
    with pytest.raises(SystemExit) as stop:
        run(command.format(tmp=tmp_path))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
