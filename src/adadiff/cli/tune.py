"""`adadiff tune`: search the sampling plan with the best images under a budget and floors, and store it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from adadiff.cli.options import Cluster, FitOptions
from adadiff.cli.output import console
from adadiff.data import DataConfig
from adadiff.tuning.config import JUDGED_BY, SEARCHED_BY, SEED, TuneConfig
from adadiff.tuning.goal import TuningGoal
from adadiff.utils.errors import InputError
from adadiff.utils.files import model_folder
from adadiff.utils.ranges import Count, Fraction, Positive, Seed, checked

NO_DATA = DataConfig(source="")
SEARCH = "tuning"


@checked
def tune_command(
    model: Positional[Path],
    data: DataConfig = NO_DATA,
    compute: Positive | None = None,
    gflops: Positive | None = None,
    seconds: Positive | None = None,
    agreement: Fraction | None = None,
    recall: Fraction | None = None,
    precision: Fraction | None = None,
    clip_score: Positive | None = None,
    features: tuple[str, ...] = SEARCHED_BY,
    judges: tuple[str, ...] = JUDGED_BY,
    clip: str | None = None,
    trials: Count = 60,
    images: tuple[Count, ...] = (250, 1000, 4000),
    confirm: Count = 10_000,
    batch_size: Count = 50,
    seed: Seed = SEED,
    cluster: Cluster = None,
    *,
    options: Annotated[FitOptions, arg(name="")],
) -> None:
    """Search the steps, guidance and depth that give the best images for a budget, and store them with the model.

    Tries sampling plans on few images and the best of them on more, and does the same for the guidance of the full
    model, which is the reference. The best are measured on fresh images and named by feature networks that the search
    did not go by. Prints their table, draws the front, and writes exit_policy.json into the model's folder, where
    `adadiff sample` finds it. After an interruption the same command continues.

    Args:
        model: Model folder, as `adadiff train` makes it, or with --out the name of a packaged model; or a stock
            diffusers pipeline of images: its folder, or with --out its name on the Hugging Face Hub.
        data: Real images; they are converted to the size and channels of the model's.
        compute: Budget: FLOPs of an image over those of the model's default steps and guidance with all layers. Without
            any budget the whole front is searched.
        gflops: Budget: billions of FLOPs of an image.
        seconds: Budget: seconds of an image in a batch, on this machine.
        agreement: Floor: share of images in which the first network recognises the requested class.
        recall: Floor: recall by the first network.
        precision: Floor: precision by the first network.
        clip_score: Floor: CLIP score of prompts; set --prompts and --clip.
        features: Feature networks that the search goes by: names as `adadiff evaluate` takes them.
        judges: Feature networks that name the winner, one or more that the search does not go by.
        clip: CLIP model of transformers, by its name on the hub or its folder.
        trials: Number of plans tried, and of settings of the full model.
        images: Images of a trial in each round, growing.
        confirm: Fresh images that the best are measured on.
        batch_size: Images per batch.
        seed: Seed of the noise and of the proposals, at least 0.
        cluster: Sample the images on a Ray cluster: HOST:PORT, auto for the one that this machine is part of, or
            nothing to start one of this machine's cores or GPUs. Exits are recorded and plans timed in this process, on
            its CPU; so is a budget in seconds. Needs adadiff[cluster].
        options: The default that compute is relative to, what is sampled, and where the plan is stored: in --out or the
            model's folder, with the search in its folder tuning.
    """
    goal = TuningGoal(compute, gflops, seconds, agreement, precision, recall, clip_score)
    config = TuneConfig(goal, features, judges, trials, images, confirm, batch_size, seed)
    if not data.source:
        raise InputError(
            "no real images are given: set --data to search for their quality, or use adadiff calibrate, which needs "
            "none and keeps the full model's images"
        )
    _tune(model, data, config, clip, cluster, options, _place(model, options))


def _place(model: Path, options: FitOptions) -> Path:
    """Return the folder for the plan; raise InputError if it may not be written to."""
    from adadiff.cli.shared import require_free, require_own_folder
    from adadiff.policies.stored import EXIT_POLICY

    require_own_folder(model, options, "plan")
    place = options.out or model
    require_free(place, [EXIT_POLICY], options)
    return place


def _tune(
    model: Path,
    data: DataConfig,
    config: TuneConfig,
    clip: str | None,
    cluster: str | None,
    options: FitOptions,
    place: Path,
) -> None:
    """Search, print and store; for the arguments see `tune_command`."""
    from adadiff.cli.shared import device_of
    from adadiff.cli.tunable import loaded_tunable
    from adadiff.evaluation.evaluator import evaluator_of
    from adadiff.tuning import draw_tuning, outcome_in_words, plans_in_words, tune, tuning_table

    names = (*config.features, *config.judges)
    with loaded_tunable(model_folder(model), options, cluster) as tunable:
        shape, takes_text = tunable.image_shape, bool(tunable.prompts)
        evaluator = evaluator_of(shape, takes_text, data, names, clip, device_of(options.device))
        tuning = tune(tunable, evaluator, config, place / SEARCH)
    console.print(tuning_table(tuning))
    console.print(plans_in_words(tuning), markup=False, highlight=False)
    draw_tuning(tuning, place / SEARCH / "front.png")
    if tuning.chosen is None:
        raise InputError(f"{outcome_in_words(tuning)}; nothing was stored")
    console.print(outcome_in_words(tuning), markup=False, highlight=False)
    path = tuning.stored(tunable).save(place)
    console.print(f"the plan is in {path}, the drawn front in {place / SEARCH / 'front.png'}")
