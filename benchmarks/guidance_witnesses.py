"""Quality of the full model at several settings of guidance, by several feature networks.

All layers, the same noise for all settings. Samples are kept in --out, so that an interrupted run continues. Results
are printed, not asserted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline, NeverExit
from adadiff.data import DataConfig
from adadiff.evaluation.evaluate import Evaluation, evaluate_folder
from adadiff.evaluation.evaluator import evaluator_for
from adadiff.evaluation.packaged import PACKAGED
from adadiff.sampling import Conditions, Guidance
from adadiff.sampling.folder import FolderSummary, sample_to_folder
from adadiff.utils.files import model_folder
from adadiff.utils.text import with_error

SETTINGS = {
    "scale 6 everywhere": Guidance(6.0),
    "scale 6 in [0.25, 0.75)": Guidance(6.0, (0.25, 0.75)),
    "scale 6 in [0.1, 0.8)": Guidance(6.0, (0.1, 0.8)),
    "scale 4 everywhere": Guidance(4.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="real images, as adadiff evaluate takes them")
    parser.add_argument("--model", default="cifar10-class-xs", help="a model of classes")
    parser.add_argument("--features", nargs="+", default=list(PACKAGED))
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=4_000_000, help="of noise that nothing else uses by default")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=Path("runs/guidance-witnesses"))
    options = parser.parse_args()
    folder = model_folder(Path(options.model))
    evaluator = evaluator_for(folder, DataConfig(source=options.data), options.features, None, "cpu")
    evaluator.require_enough(options.n)
    pipeline = AdaDiffPipeline.from_pretrained(folder, torch_dtype=getattr(torch, options.dtype))
    found = {}
    for k, (name, guidance) in enumerate(SETTINGS.items()):
        samples = options.out / str(k)
        found[name] = evaluate_folder(samples, _sample(pipeline, samples, guidance, options), evaluator)
    console = Console(width=130)
    console.print(f"{options.n} images, seed {options.seed}, {options.dtype}, torch {torch.__version__}")
    console.print(_table(found))


def _sample(pipeline: AdaDiffPipeline, folder: Path, guidance: Guidance, options: argparse.Namespace) -> FolderSummary:
    conditions = Conditions(pipeline.transformer.class_indices, guidance=guidance)
    steps = pipeline.sampling_settings().steps
    return sample_to_folder(
        pipeline, folder, options.n, steps, NeverExit(), options.seed, conditions, options.batch_size
    )


def _table(found: dict[str, Evaluation]) -> Table:
    first = next(iter(found.values()))
    table = Table(
        "guidance",
        *first.networks,
        f"saturation (real {first.real_saturation:.2f})",
        f"recall by {next(iter(first.networks))}",
        "agreement",
        title="Fréchet distance by each feature network, and more",
    )
    for name, each in found.items():
        agreement = each.first.class_agreement
        table.add_row(
            name,
            *(with_error(mine.frechet, mine.frechet_error) for mine in each.networks.values()),
            f"{each.saturation:.2f}",
            f"{each.first.recall:.3f}",
            "" if agreement is None else f"{agreement:.1%}",
        )
    return table


if __name__ == "__main__":
    main()
