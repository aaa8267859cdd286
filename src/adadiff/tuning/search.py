"""The search: Optuna proposes candidates, each is scored on a few images, and the best ones on more and more.

Everything that was finished is in a SQLite file, and what is proposed next depends on the seed and on the finished
trials alone: a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.trial import BaseTrial, FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from adadiff.utils.errors import InputError, one_line
from adadiff.utils.front import pareto_front

DATABASE = "search.db"
RANDOM_TRIALS = 4  # proposed at random, besides the starts, before Optuna models the objective

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Score:
    """What is known of a candidate after some images.

    Args:
        objective: What is minimised.
        compute: FLOPs of an image over those of the reference.
        missed: How far each floor and the budget is missed, as a fraction of it; 0 or less where it is met.
    """

    objective: float
    compute: float
    missed: tuple[float, ...] = ()

    @property
    def all_missed(self) -> float:
        """How far floors and budget are missed in sum; 0 if all are met."""
        return sum(max(0.0, each) for each in self.missed)


@dataclass(frozen=True)
class Scored(Generic[Candidate]):
    """A candidate with its score."""

    candidate: Candidate
    score: Score


def open_study(folder: Path, name: str, directions: int) -> optuna.Study:
    """Open a study in a folder's database, or begin it; a trial that a killed process left is given up.

    Args:
        folder: An existing folder.
        name: Name of the study; the database may hold several.
        directions: Number of objectives, all minimised.

    Raises:
        InputError: If the database is damaged, or cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (folder / DATABASE).absolute()
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path}", study_name=name, directions=["minimize"] * directions, load_if_exists=True
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise InputError(
            f"{path} cannot be used ({reason}): if it is damaged, delete it to search again; what was sampled is kept "
            f"beside it"
        ) from error
    return study


class Search(Generic[Candidate]):
    """Searches candidates by the Tree-structured Parzen Estimator and successive halving in the number of images.

    With one objective it is minimised under the constraints that `Score.missed` states; with two, compute is the
    second, and the whole front is searched.

    Args:
        study: Holds the finished trials.
        propose: Builds a candidate from the parameters that a trial suggests.
        score: Scores a candidate by the first so many images; the same call gives the same score.
        starts: Parameters of the first trials; what they leave out is proposed at random.
        seed: Seed of the proposals.
    """

    def __init__(
        self,
        study: optuna.Study,
        propose: Callable[[BaseTrial], Candidate],
        score: Callable[[Candidate, int], Score],
        starts: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
    ) -> None:
        self.study, self.propose, self.score, self.starts, self.seed = study, propose, score, starts, seed
        self.whole_front = len(study.directions) > 1

    def run(self, trials: int, images: Sequence[int], count: int | None = None) -> list[Scored[Candidate]]:
        """Search, or go on, until there are so many trials; then score the best again, on more images.

        Args:
            trials: Number of trials, each scored by the first `images[0]` images.
            images: Numbers of images, growing. As many candidates go on as to make every round cost the same.
            count: How many candidates to return at most; by default all.

        Returns:
            The best of the candidates that were scored by the last number of images, the best first; of a whole front
            that is larger than `count`, evenly spread ones.
        """
        while (done := len(self.finished)) < trials:
            self._try(done, images[0])
        first = {scored.candidate: scored for scored in map(self._scored, self.finished[:trials])}
        pool = list(first.values())
        for fewer, more in itertools.pairwise(images):
            going_on = best(pool, max(1, round(len(pool) * fewer / more)), self.whole_front)
            pool = [Scored(each.candidate, self.score(each.candidate, more)) for each in going_on]
        return best(pool, count or len(pool), self.whole_front)

    @property
    def finished(self) -> list[FrozenTrial]:
        """The finished trials, in order."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _try(self, number: int, images: int) -> None:
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        candidate = self.propose(trial)
        score = self.score(candidate, images)
        for place, missed in enumerate(score.missed):
            trial.set_constraint(str(place), missed)
        trial.set_user_attr("score", asdict(score))
        values = [score.objective, score.compute] if self.whole_front else [score.objective]
        self.study.tell(trial, values)

    def _sampler(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        sampler = TPESampler(seed=seed, n_startup_trials=len(self.starts) + RANDOM_TRIALS, multivariate=True)
        if number >= len(self.starts):
            return sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return PartialFixedSampler(dict(self.starts[number]), sampler)

    @staticmethod
    def score_of(trial: FrozenTrial) -> Score:
        """Return the score of a finished trial."""
        score = trial.user_attrs["score"]
        return Score(score["objective"], score["compute"], tuple(score["missed"]))

    def _scored(self, trial: FrozenTrial) -> Scored[Candidate]:
        return Scored(self.propose(trial), self.score_of(trial))


def best(pool: Sequence[Scored[Candidate]], count: int, whole_front: bool) -> list[Scored[Candidate]]:
    """Return the best candidates of a pool, the best first; those that miss a floor or the budget come last.

    Args:
        pool: The candidates.
        count: How many to return at most.
        whole_front: Whether compute matters too. The candidates are then taken front by front, each from the least
            compute to the most; of the last front they are evenly spread.
    """
    if not whole_front:
        return sorted(pool, key=lambda each: (each.score.all_missed, each.score.objective))[:count]
    rest = [each for each in pool if each.score.all_missed == 0]
    missing = sorted((each for each in pool if each.score.all_missed > 0), key=lambda each: each.score.all_missed)
    chosen: list[Scored[Candidate]] = []
    while rest and len(chosen) < count:
        front = set(pareto_front([_point(each) for each in rest]))
        layer = sorted((each for each in rest if _point(each) in front), key=_point)
        rest = [each for each in rest if _point(each) not in front]
        spread = np.linspace(0, len(layer) - 1, min(len(layer), count - len(chosen))).round().astype(int)
        chosen += [layer[place] for place in spread]
    return chosen + missing[: count - len(chosen)]


def _point(scored: Scored[Candidate]) -> tuple[float, float]:
    return scored.score.compute, scored.score.objective
