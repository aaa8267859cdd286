"""`adadiff adapt`: fit exit heads and uncertainty estimators to a stock pipeline, and store them with it."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from adadiff.cli.options import FitOptions, ModelFolder
from adadiff.cli.output import console
from adadiff.utils.errors import InputError
from adadiff.utils.files import is_stock
from adadiff.utils.ranges import Count, Seed, checked


@checked
def adapt_command(
    model: Positional[ModelFolder],
    samples: Count = 32,
    batch_size: Count = 8,
    seed: Seed = 0,
    *,
    options: Annotated[FitOptions, arg(name="")],
) -> None:
    """Fit exit heads and uncertainty estimators to a stock diffusers pipeline, and store them with it.

    Samples with all layers; no images are needed and the model's weights stay as they are. Afterwards `adadiff sample`
    takes thresholds for the pipeline (--tau), by which each sample exits by itself. Steps, guidance and scheduler
    default to those of the folder's exit_policy.json, as they do in `adadiff sample`, or else to the pipeline's own.

    Args:
        model: Folder of the pipeline, or its name on the Hugging Face Hub.
        samples: Number of samples to fit the heads on; as many fresh ones for the estimators.
        batch_size: Images per batch.
        seed: Seed of the noise, at least 0.
        options: How the pipeline is sampled, and where its adaptation.safetensors is stored.
    """
    from adadiff.cli.shared import require_free, require_own_folder
    from adadiff.cli.stock import stored_policy, to_sample
    from adadiff.stock import adapt
    from adadiff.stock.adapting.adaptation import ADAPTATION

    if not is_stock(model):
        raise InputError(f"{model} is a model of adadiff's own, which has exit heads and estimators already")
    require_own_folder(model, options, "adaptation")
    folder = options.out or model
    require_free(folder, [ADAPTATION], options)
    pipe, conditions, arguments = to_sample(model, options, stored_policy(model))
    adaptation = adapt(pipe, conditions, samples=samples, batch_size=batch_size, seed=seed, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"the exit heads and estimators are in {adaptation.save(folder)}")
