"""Latents: encoded, kept, read, trained on, decoded."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from adadiff import AdaDiffPipeline, InputError
from adadiff.cli import main
from adadiff.data import DataConfig, ImageData, LatentData, encode_to_folder, load_vae, open_data
from adadiff.data import latents as latents_module
from adadiff.training.stream import TrainingStream
from adadiff.utils.files import exclusive_folder
from tests.data.conftest import write_image

DATA = DataConfig(size=8, channels=1, flip=False, split="test")


@pytest.fixture
def vae():
    """Latents of 4x4x2 from grey images of 8x8."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture
def folder(vae, tmp_path):
    encode_to_folder(ImageData(DATA), vae, tmp_path / "latents", batch_size=50)
    return tmp_path / "latents"


def config(folder, **changes):
    return DataConfig(source=str(folder), size=8, **changes)


def test_items_are_the_scaled_latents_with_labels(vae, folder):
    images, latents = ImageData(DATA), open_data(config(folder))
    assert isinstance(latents, LatentData)
    assert latents.shape == (2, 4, 4)
    assert latents.class_names == images.class_names
    assert len(latents) == len(images)
    for k in (0, 77, 359):
        item, image = latents[k], images[k]
        with torch.no_grad():
            wanted = vae.encode(image["image"][None]).latent_dist
        torch.testing.assert_close(item["mean"], 0.5 * wanted.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(item["std"], 0.5 * wanted.std[0], rtol=1e-4, atol=1e-5)
        assert item["label"] == image["label"]


def test_the_stream_draws_from_them(folder):
    latents = LatentData(config(folder))
    stream = TrainingStream(latents, seed=0, flip=True)
    length = len(latents)
    draws = torch.stack([stream[k]["image"] for k in range(3 * length)]).unflatten(0, (3, length))
    assert not torch.allclose(draws[0].sort(0).values, draws[1].sort(0).values)
    means = torch.stack([latents[k]["mean"] for k in range(length)])
    stds = torch.stack([latents[k]["std"] for k in range(length)])
    variance = means.var(0) + stds.square().mean(0)
    torch.testing.assert_close(draws.flatten(0, 1).var(0), variance, rtol=0.25, atol=0)


def test_mirrored_images_are_encoded_too(vae, tmp_path):
    images = ImageData(DataConfig(size=8, channels=1, flip=True, split="test"))
    assert encode_to_folder(images, vae, tmp_path / "both", batch_size=360) == 720
    latents = LatentData(config(tmp_path / "both"))
    with torch.no_grad():
        mirrored = vae.encode(images[5]["image"].flip(2)[None]).latent_dist.mean[0]
    torch.testing.assert_close(latents[365]["mean"], 0.5 * mirrored, rtol=1e-4, atol=1e-5)
    assert latents[365]["label"] == images[5]["label"]


def test_an_interrupted_encoding_goes_on(vae, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_module, "SHARD_IMAGES", 100)
    images, encoded = ImageData(DATA), []
    encode = type(vae).encode

    def interrupt_the_third_shard(self, pixels):
        encoded.append(len(pixels))
        if len(encoded) == 4:  # the first asks for the shape
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(type(vae), "encode", interrupt_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        encode_to_folder(images, vae, tmp_path / "parts", batch_size=100)
    with pytest.raises(InputError, match="2 of 4 files"):
        LatentData(config(tmp_path / "parts"))
    encode_to_folder(images, vae, tmp_path / "parts", batch_size=100)
    assert encoded == [1, 100, 100, 100, 1, 100, 60]
    whole, parts = LatentData(config(folder)), LatentData(config(tmp_path / "parts"))
    for k in (0, 150, 359):
        torch.testing.assert_close(parts[k]["mean"], whole[k]["mean"], rtol=1e-4, atol=1e-5)


def test_encode_train_and_sample_from_the_command_line(vae, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae.save_pretrained("vae")
    data = "--data.size 8 --data.channels 1 --data.split test"
    main(f"encode latents --vae vae --scaling-factor 0.7 {data}".split())
    assert "720 latents in latents" in capsys.readouterr().out
    assert json.loads((tmp_path / "latents/vae/config.json").read_text())["scaling_factor"] == 0.7
    tiny = "--model.patch-size 2 --model.width 16 --model.depth 3 --model.num-heads 2 --batch-size 4"
    main(f"train images --data.source latents --data.size 8 --steps 2 --sample-every 2 --out run {tiny}".split())
    pipeline = AdaDiffPipeline.from_pretrained("run")
    assert pipeline.transformer.backbone.in_channels == 2
    assert pipeline.vae.config.scaling_factor == 0.7
    images = pipeline(
        batch_size=3, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)
    ).images
    assert images.shape == (3, 1, 8, 8)
    main(["sample", "run", "-n", "2", "--steps", "2", "--out", "samples"])
    assert (tmp_path / "samples/000001.png").is_file()


def test_decoding_in_small_batches_is_decoding_at_once(vae, pipeline):
    pipeline.vae = vae
    latents = torch.randn(19, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(pipeline.decode(latents), vae.decode(latents / 0.5).sample, rtol=1e-4, atol=1e-5)


def test_another_image_size_or_autoencoder_is_refused(vae, folder, tmp_path):
    with pytest.raises(InputError, match="images of 8 pixels, not 16"):
        LatentData(DataConfig(source=str(folder), size=16))
    vae.register_to_config(scaling_factor=0.6)
    with pytest.raises(InputError, match="made with vae = "):
        encode_to_folder(ImageData(DATA), vae, folder)
    with pytest.raises(InputError, match="1 channels, and these have 3"):
        encode_to_folder(ImageData(DataConfig(size=8)), vae, tmp_path / "colour")
    assert not (tmp_path / "colour").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Damaged, changed, shared


def test_latents_are_found_by_their_exact_names_in_a_folder_of_any_name(folder, tmp_path):
    odd = tmp_path / "set [12]*"
    shutil.copytree(folder, odd)
    for stray in ("latents-00007.parquet", "latents-copy.parquet"):
        shutil.copy(odd / "latents-00000.parquet", odd / stray)
    assert len(LatentData(config(odd))) == 360


def test_a_damaged_file_of_latents_is_named(folder):
    shard = folder / "latents-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"latents-00000\.parquet is truncated or altered"):
        LatentData(config(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ('{"size": 8', "not JSON"),
        ("[]", "no JSON object"),
        ('{"size": 8, "shards": 1}', "has no shape"),
    ],
)
def test_a_damaged_description_is_named(folder, content, message):
    (folder / "latents.json").write_text(content)
    with pytest.raises(InputError, match=rf"latents\.json is damaged .*{message}"):
        open_data(config(folder))


def test_latents_have_no_splits(folder):
    with pytest.raises(InputError, match="no split 'test': the only one is train"):
        LatentData(config(folder, split="test"))


def test_a_shard_without_a_checksum_is_encoded_again(vae, folder):
    shard, checksums = folder / "latents-00000.parquet", folder / "SHA256SUMS"
    before = LatentData(config(folder))[7]["mean"]
    checksums.write_text("".join(line for line in checksums.open() if "parquet" not in line))
    shard.write_bytes(b"half-written")
    with pytest.raises(InputError, match="holds 0 of 1 files of latents"):
        LatentData(config(folder))
    encode_to_folder(ImageData(DATA), vae, folder, batch_size=50)
    assert torch.equal(LatentData(config(folder))[7]["mean"], before)


def test_images_that_changed_since_are_refused_and_copied_ones_are_not(vae, tmp_path):
    for k in range(3):
        write_image(tmp_path / f"photos/{k}.png", 80 * k, mode="L")
    images = DataConfig(source=str(tmp_path / "photos"), size=8, channels=1)
    encode_to_folder(ImageData(images), vae, tmp_path / "latents")
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    copied = DataConfig(source=str(tmp_path / "copy"), size=8, channels=1)
    assert encode_to_folder(ImageData(copied), vae, tmp_path / "latents") == 6
    write_image(tmp_path / "photos/1.png", 255, mode="L")
    with pytest.raises(InputError, match=r"latents made with data\.fingerprint = "):
        encode_to_folder(ImageData(images), vae, tmp_path / "latents")


def test_a_folder_that_another_process_writes_is_refused(vae, tmp_path):
    with exclusive_folder(tmp_path / "latents"), pytest.raises(InputError, match="another process is writing"):
        encode_to_folder(ImageData(DATA), vae, tmp_path / "latents")


def test_a_folder_of_other_files_stays_as_it_is(vae, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        encode_to_folder(ImageData(DATA), vae, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_autoencoder_that_makes_nan_leaves_nothing_behind(vae, tmp_path):
    vae.encoder.conv_in.weight.data[0] = torch.nan
    with pytest.raises(InputError, match="latents in float32 are NaN or infinite"):
        encode_to_folder(ImageData(DATA), vae, tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


def test_a_latent_that_is_infinite_stops_the_encoding(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_module, "SHARD_IMAGES", 200)
    images, get = ImageData(DATA), ImageData.__getitem__

    def bright_later(self, index):
        item = get(self, index)
        return {**item, "image": item["image"] * (1e38 if index >= 200 else 1)}

    monkeypatch.setattr(ImageData, "__getitem__", bright_later)
    with pytest.raises(InputError, match="are NaN or infinite"):
        encode_to_folder(images, vae, tmp_path / "latents")
    assert (tmp_path / "latents/latents-00000.parquet").is_file()
    assert not (tmp_path / "latents/latents-00001.parquet").exists()


def test_latents_without_a_caption_are_refused_or_left_out(vae, tmp_path):
    for name in "ab":
        write_image(tmp_path / f"photos/{name}.png", 99, mode="L")
    (tmp_path / "photos/b.txt").write_text("a grey square")
    images = ImageData(DataConfig(source=str(tmp_path / "photos"), size=8, channels=1, flip=False))
    encode_to_folder(images, vae, tmp_path / "latents")
    with pytest.raises(InputError, match="1 of 2 rows have no caption"):
        open_data(config(tmp_path / "latents"), condition="text")
    latents = open_data(config(tmp_path / "latents", on_error="skip"), condition="text")
    assert latents.captions() == ["a grey square"]
    assert latents.describe()[0] == f"1 latents of {tmp_path}/latents"


def test_other_latents_have_another_identity(folder, vae, tmp_path):
    encode_to_folder(ImageData(DataConfig(size=8, channels=1, flip=True, split="test")), vae, tmp_path / "more")
    assert LatentData(config(folder)).identity() != LatentData(config(tmp_path / "more")).identity()


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def break_weights(change):
    def broken(folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return broken


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (break_weights(lambda tensors: tensors.pop("encoder.conv_in.weight")), "do not fit its config.json: 1 tensors"),
        (break_weights(lambda tensors: tensors["encoder.conv_in.weight"].fill_(torch.inf)), "NaN or infinite"),
        (lambda folder: (folder / "config.json").write_text(""), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"sample_size": "x'), "config.json is damaged"),
        (
            lambda folder: (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"half"),
            "neither a folder with an",
        ),
        (
            lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n"),
            "config.json is truncated or",
        ),
    ],
)
def test_a_damaged_autoencoder_is_named_in_one_line(vae, tmp_path, broken, message):
    vae.save_pretrained(tmp_path / "vae")
    broken(tmp_path / "vae")
    with pytest.raises(InputError, match=message) as caught:
        load_vae(str(tmp_path / "vae"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such-vae", "./missing"])
def test_a_missing_autoencoder_is_named(name):
    with pytest.raises(InputError, match=name):
        load_vae(name)
