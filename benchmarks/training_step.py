"""Time of a joint training step against a plain one of the same backbone, at U-ViT-S/2 size.

One process, variants timed alternately, medians; results are printed, not asserted.
"""

from __future__ import annotations

import argparse

import torch

from adadiff import AdaptiveModel
from adadiff.exits.losses import joint_loss, simple_loss
from adadiff.utils.timing import median_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "width": 512, "depth": 13, "num_heads": 8}
    model = AdaptiveModel(sample_size=32, in_channels=3, backbone_config=sizes)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    sample, target = torch.randn(2, options.batch, 3, 32, 32)
    timestep = torch.randint(1000, (options.batch,))

    def step(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def joint_total() -> torch.Tensor:
        predictions, uncertainties = model.all_exits(sample, timestep)
        return joint_loss(predictions, uncertainties, target).total

    seconds = median_seconds(
        {
            "plain": lambda: step(simple_loss(model.backbone(sample, timestep), target)),
            "joint": lambda: step(joint_total()),
        },
        options.repeats,
    )
    print(
        f"{torch.get_num_threads()} threads, batch {options.batch}, medians of {options.repeats}: "
        f"plain step {seconds['plain']:.3f} s, joint step {seconds['joint']:.3f} s: "
        f"{seconds['joint'] / seconds['plain']:.3f}x (<= 1.15)"
    )


if __name__ == "__main__":
    main()
