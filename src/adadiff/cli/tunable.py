"""What `adadiff tune` and comparisons of tuned plans search plans for: a model of our own, or a stock pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadiff.cli.options import FitOptions
from adadiff.cli.shared import chosen_prompts, device_here, load_with_default_plan, spread_over
from adadiff.cli.stock import to_sample
from adadiff.sampling import Conditions
from adadiff.tuning import Tunable, TunablePipeline, TunableStockPipeline
from adadiff.utils.errors import InputError
from adadiff.utils.files import is_stock


@contextmanager
def loaded_tunable(folder: Path, options: FitOptions, cluster: str | None) -> Iterator[Tunable]:
    """Load a model, and connect to the cluster that its images are sampled on, if any.

    Args:
        folder: The model's folder, or the name of a stock pipeline on the Hub.
        options: How it is sampled.
        cluster: The cluster, as the option `--cluster` names it.
    """
    if is_stock(folder):
        if cluster is not None:
            raise InputError("--cluster is for models of adadiff's own: leave it out")
        pipe, wanted, arguments = to_sample(folder, options)
        yield TunableStockPipeline(pipe, wanted, **arguments)
        return
    if options.argument:
        raise InputError("--argument is for stock pipelines: leave it out")
    texts = chosen_prompts((), options.prompts)
    with spread_over(cluster, options.device) as spread:
        device = device_here(options.device, cluster)
        pipeline, default = load_with_default_plan(folder, options.dtype, device, options)
        conditions = Conditions(options.class_index or pipeline.transformer.class_indices, texts)
        yield TunablePipeline(pipeline, default, conditions, spread)
