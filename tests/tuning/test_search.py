"""The search against all candidates of a tiny space, tried one by one."""

from dataclasses import dataclass

import pytest

from adadiff.tuning.search import Score, Scored, Search, best, open_study
from adadiff.utils.front import pareto_front

SIDE = 6


@dataclass(frozen=True)
class Cell:
    """A place on a board, with a hollow at (4, 1)."""

    x: int
    y: int

    @property
    def height(self):
        return (self.x - 4) ** 2 + 2 * (self.y - 1) ** 2


BOARD = [Cell(x, y) for x in range(SIDE) for y in range(SIDE)]


def propose(trial):
    return Cell(trial.suggest_int("x", 0, SIDE - 1), trial.suggest_int("y", 0, SIDE - 1))


def score(cell, images):
    """The height, with an error that more images make smaller, and a constraint: x at most 3."""
    error = ((7 * cell.x + 3 * cell.y) % 5 - 2) / images
    return Score(cell.height + error, compute=(cell.x + 1) / SIDE, missed=((cell.x - 3) / 3,))


def found(folder, trials=40, score=score, directions=1, starts=()):
    folder.mkdir(exist_ok=True)
    return Search(open_study(folder, "board", directions), propose, score, starts).run(trials, (10, 40, 160))


def test_the_winner_is_the_best_of_all_candidates_that_meet_the_constraint(tmp_path):
    allowed = [cell for cell in BOARD if cell.x <= 3]
    assert found(tmp_path)[0].candidate == min(allowed, key=lambda cell: score(cell, 160).objective)


def test_what_is_found_of_the_whole_front_is_on_it(tmp_path):
    allowed = [score(cell, 160) for cell in BOARD if cell.x <= 3]
    front = pareto_front([(each.compute, each.objective) for each in allowed])
    pool = found(tmp_path, trials=50, directions=2)
    assert len(pool) >= 2
    assert [(each.score.compute, each.score.objective) for each in pool] == [
        point for point in front if point[0] in {each.score.compute for each in pool}
    ]


def test_a_front_that_is_too_large_is_thinned_evenly_and_keeps_its_dearest(tmp_path):
    search = Search(open_study(tmp_path, "board", 2), propose, score)
    allowed = [each.score for each in search.run(50, (160,)) if each.score.all_missed == 0]
    front = [compute for compute, _ in pareto_front([(each.compute, each.objective) for each in allowed])]
    assert len(front) > 3
    thinned = [each.score.compute for each in search.run(50, (160,), 3)]
    assert thinned == [front[0], front[round((len(front) - 1) / 2)], front[-1]]


@pytest.mark.parametrize(("killed_at", "directions"), [(0, 1), (14, 2), (21, 1)])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, killed_at, directions):
    calls = []

    def killing(cell, images):
        calls.append(cell)
        if len(calls) == killed_at + 1:
            raise KeyboardInterrupt
        return score(cell, images)

    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "killed", 20, killing, directions, starts=({"x": 2}, {"x": 5, "y": 0}))
    again = found(tmp_path / "killed", 20, directions=directions, starts=({"x": 2}, {"x": 5, "y": 0}))
    through = found(tmp_path / "through", 20, directions=directions, starts=({"x": 2}, {"x": 5, "y": 0}))
    assert again == through
    tried = [
        [trial.params for trial in Search(open_study(tmp_path / name, "board", directions), propose, score).finished]
        for name in ("killed", "through")
    ]
    assert tried[0] == tried[1]
    assert tried[0][0]["x"] == 2
    assert tried[0][1] == {"x": 5, "y": 0}


def test_more_trials_go_on_from_those_there_are(tmp_path):
    found(tmp_path / "twice", 12)
    assert found(tmp_path / "twice", 20) == found(tmp_path / "once", 20)


def test_every_round_of_halving_costs_the_same(tmp_path):
    scored = []

    def counting(cell, images):
        scored.append(images)
        return score(cell, images)

    found(tmp_path, 36, counting)
    distinct = len({*map(tuple, (trial.params.items() for trial in open_study(tmp_path, "board", 1).trials))})
    assert [scored.count(images) for images in (10, 40, 160)] == [
        36,
        round(distinct / 4),
        round(round(distinct / 4) / 4),
    ]


def test_of_a_front_that_is_too_long_the_best_are_evenly_spread():
    front = [Scored(k, Score(objective=10 - k, compute=k / 10)) for k in range(9)]
    beaten = [Scored(k, Score(objective=20, compute=k / 10)) for k in range(9)]
    missing = [Scored("missing", Score(objective=0, compute=0, missed=(0.1,)))]
    assert [each.candidate for each in best([*missing, *beaten, *front], 5, whole_front=True)] == [0, 2, 4, 6, 8]
    assert best([*missing, *front], 20, whole_front=True) == [*front, *missing]


def test_of_those_that_miss_a_floor_the_nearest_come_first():
    pool = [Scored(name, Score(1.0, 0.5, missed)) for name, missed in (("far", (0.3, -1)), ("near", (0.1, 0.05)))]
    assert [each.candidate for each in best(pool, 2, whole_front=False)] == ["near", "far"]
