"""The training stream."""

import torch

from adadiff.data import DataConfig, ImageData
from adadiff.training.stream import TrainingStream


def make_stream(seed=0, flip=True):
    return TrainingStream(ImageData(DataConfig(size=8, channels=1)), seed, flip)


def test_item_k_follows_from_seed_and_k_alone():
    one, other = make_stream(), make_stream()
    [other[k] for k in (5000, 3, 17)]
    for k in (17, 0, 4999):
        a, b = one[k], other[k]
        assert all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)
    assert not torch.equal(one[0]["noise"], one[1]["noise"])
    assert not torch.equal(one[0]["noise"], make_stream(seed=1)[0]["noise"])


def test_an_epoch_shows_every_image_once_in_a_new_order():
    stream = make_stream(flip=False)
    length = len(stream.images)
    first, second = ([stream[k]["image"] for k in range(e * length, (e + 1) * length)] for e in (0, 1))
    fingerprints = [sorted(image.numpy().tobytes() for image in epoch) for epoch in (first, second)]
    assert fingerprints[0] == fingerprints[1]
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_noise_is_standard_normal_times_uniform_and_half_are_mirrored():
    stream, plain = make_stream(), make_stream(flip=False)
    items = [stream[k] for k in range(1000)]
    noise = torch.stack([item["noise"] for item in items])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    times = torch.stack([item["time"] for item in items]).sort().values
    assert (times - torch.linspace(0, 1, 1000)).abs().max() < 0.06
    mirrored = [torch.equal(item["image"], plain[k]["image"].flip(2)) for k, item in enumerate(items)]
    assert all(m or torch.equal(items[k]["image"], plain[k]["image"]) for k, m in enumerate(mirrored))
    assert 430 < sum(mirrored) < 570
