"""`adadiff export`: copy a model, to share it."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from adadiff.cli.options import Dtype, ModelFolder
from adadiff.cli.output import console
from adadiff.utils.files import require_empty_folder


def export_command(run: Positional[ModelFolder], out: Positional[Path], dtype: Dtype = "float16") -> None:
    """Copy a model without its checkpoints, with its weights stored in the given precision.

    The copy samples as the model does, by the same plans.

    Args:
        run: Model folder, as `adadiff train` makes it, or the name of a packaged model.
        out: New folder for the copy.
        dtype: Precision of the stored weights; they are converted to float32 on loading.
    """
    from diffusers import ConfigMixin

    from adadiff.cli.shared import load_pipeline
    from adadiff.sampling.settings import FolderSettings

    require_empty_folder(out)
    own = FolderSettings.load(run)
    pipeline = load_pipeline(run, dtype, "cpu", own_settings=False)
    for part in (pipeline, pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        if isinstance(part, ConfigMixin):
            part.register_to_config(_name_or_path="")  # do not publish the path it was loaded from
    pipeline.save_pretrained(out)
    own.save(out)
    console.print(f"the model is in {out}")
