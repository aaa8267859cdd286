"""`adadiff convert`: convert checkpoints of the U-ViT and AdaDiff releases to model folders, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from adadiff.cli.output import console
from adadiff.utils.ranges import Count, Positive, checked


@checked
def convert_command(
    source: Positional[Path],
    out: Positional[Path],
    to: Literal["adadiff", "uvit"] = "adadiff",
    preset: str | None = None,
    num_heads: Count | None = None,
    vae: str | None = None,
    scaling_factor: Positive | None = None,
    text_encoder: str | None = None,
    context_length: Count | None = None,
) -> None:
    """Convert a .pth checkpoint of the U-ViT or AdaDiff release to a model folder; with --to uvit, a folder to one.

    Nothing in the file is executed. AdaDiff's estimators predict certainty; here tau is one minus their threshold.

    Args:
        source: The .pth file; with --to uvit, the model folder, or the name of a packaged model.
        out: The new model folder; with --to uvit, the new .pth file.
        to: Format to convert to: adadiff for a model folder, uvit for a .pth file of the releases.
        preset: Preset that the checkpoint belongs to; it gives the attention heads, forward process and sampling.
        num_heads: Number of attention heads, in place of a preset.
        vae: AutoencoderKL that decodes the latents of a latent model, by its name on the hub or its folder.
        scaling_factor: Factor that latents are multiplied by before the diffusion; by default the autoencoder's.
        text_encoder: Text model of transformers for a model that takes text, by its name on the hub or its folder.
        context_length: Number of text features of a model that takes text; by default CLIP's, 77.
    """
    from adadiff.conversion import convert_to_file, convert_to_folder

    if to == "uvit":
        complete = convert_to_file(source, out)
        left_out = "" if complete else ", without its estimators: the format has no place for their kind"
        console.print(f"the weights are in {out}{left_out}")
        return
    sizes = convert_to_folder(source, out, preset, num_heads, vae, scaling_factor, text_encoder, context_length)
    console.print(f"the model is in {out}: {sizes.depth} layers of width {sizes.width}")
    if not sizes.estimators:
        console.print(f"it has no exits yet; to train them: adadiff train PRESET --init-from {out}")
