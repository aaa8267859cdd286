"""The report of a comparison of tuned plans: how often ours wins, figures, and a table for each floor and network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adadiff.comparison.pages import write_pages
from adadiff.comparison.plans.methods import METHODS, CachedPlan, CalibratedDepth, FullModel
from adadiff.comparison.plans.run import Front, PlanResults
from adadiff.sampling import SamplingPlan
from adadiff.tuning.report import MARKERS, plan_in_words
from adadiff.tuning.result import Confirmed
from adadiff.utils.text import with_error

OURS, FULL = CalibratedDepth.name, FullModel.name


def write_plans_report(results: PlanResults, out: Path) -> None:
    """Write index.html, report.md with `pictures/`, and results.json into the comparison's folder."""
    drawn = {
        "compute": draw_fronts(results, "compute, over the default's", lambda front, point: point.compute),
        "seconds": draw_fronts(results, "seconds, over the default's", _seconds_share),
    }
    contents = {
        "title": f"Tuned plans of every method: {results.config.model}",
        "verdicts": verdicts_in_words(results),
        "conditions": _conditions_in_words(results),
        "figures": [(name, f"Fréchet distance against {name}") for name in drawn],
        "tables": [*_tables(results), *_plan_tables(results)],
        "methods": [METHODS[name] for name in results.config.compared],
    }
    files = {"results.json": json.dumps(_described(results), indent=2) + "\n"}
    write_pages(out, "plans", contents, drawn, files)


def verdicts_in_words(results: PlanResults) -> list[str]:
    """Say for each floor at how many targets and networks ours is better or worse than the best other method.

    A difference counts from two standard errors. Without ours among the methods there is nothing to say.
    """
    return [_verdict_in_words(results, floor) for floor in results.config.floors if OURS in results.config.compared]


def _verdict_in_words(results: PlanResults, floor: float) -> str:
    better, worse, compared = 0, 0, 0
    alone: dict[str, list[str]] = {"ours": [], "another method": []}
    for target in results.config.targets:
        others = [results.at(name, floor, target) for name in results.config.compared if name not in (OURS, FULL)]
        mine, rivals = results.at(OURS, floor, target), [each for each in others if each is not None]
        if mine is None or not rivals:
            if mine is not None or rivals:
                alone["another method" if mine is None else "ours"].append(f"{target:.0%}")
            continue
        for network in _networks(results):
            rival = min(rivals, key=lambda each: each.fresh.distances[network])
            difference = _difference(mine, rival, network)
            compared, better, worse = compared + 1, better + (difference <= -2), worse + (difference >= 2)
    found = [f"{who} alone has one with at most {', '.join(those)}" for who, those in alone.items() if those]
    return (
        f"{_floor_in_words(floor)}: of {compared} comparisons with the best other method, at one compute by one "
        f"network each, ours is better by two standard errors in {better}, worse in {worse}, and as good in the others."
        + (f" Of plans that meet the floor, {'; '.join(found)} of the compute." if found else "")
    )


def draw_fronts(results: PlanResults, label: str, cost: Callable[[Front, Confirmed], float]) -> Figure:
    """Plot the distance against a cost, for each floor (rows) and network (columns).

    Args:
        results: The results.
        label: Label of the horizontal axes.
        cost: The cost of a front's plan.
    """
    networks, floors = _networks(results), results.config.floors
    figure = Figure(figsize=(4.6 * len(networks), 3.8 * len(floors) + 0.6), layout="constrained")
    axes = figure.subplots(len(floors), len(networks), squeeze=False)
    colours = {name: f"C{place}" for place, name in enumerate(results.config.compared)}
    for front in results.fronts:
        ours, full = front.method == OURS, front.method == FULL
        for column, network in enumerate(networks):
            axes[floors.index(front.floor)][column].errorbar(
                [cost(front, point) for point in front.points],
                [point.fresh.distances[network] for point in front.points],
                yerr=[point.fresh.errors[network] for point in front.points],
                marker="*" if full else MARKERS[list(colours).index(front.method) % len(MARKERS)],
                markersize=12 if full else 5,
                linewidth=0 if full else 2.5 if ours else 1,
                elinewidth=1,
                color="black" if full else colours[front.method],
                label=METHODS[front.method].title,
            )
    for row, floor in enumerate(floors):
        for column, network in enumerate(networks):
            judge = ", judge" if network in results.config.judges else ""
            axes[row][column].axhline(
                results.default.fresh.distances[network], color="grey", linestyle=":", label="default, all layers"
            )
            axes[row][column].set(title=f"{network}{judge}: {_floor_in_words(floor).lower()}", xlabel=label)
            axes[row][column].grid(alpha=0.3)
        axes[row][0].set_ylabel("Fréchet distance")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _tables(results: PlanResults) -> list[tuple[str, list[str], list[dict[str, Any]]]]:
    """Build, for each floor and network, the distances of all methods at all targets."""
    tables = []
    for floor in results.config.floors:
        for network in _networks(results):
            judge = ", which no search went by" if network in results.config.judges else ""
            heads = ["method", *(f"{target:.0%}" for target in results.config.targets)]
            rows = []
            for name in (each for each in results.config.compared if each != FULL):
                found = [results.at(name, floor, target) for target in results.config.targets]
                cells = ["" if each is None else _distance(each, network) for each in found]
                rows.append({"cells": [METHODS[name].title, *cells], "ours": name == OURS})
            reference = results.at(FULL, floor, math.inf)
            best = "" if reference is None else f", the full model at its best {_distance(reference, network)}"
            title = f"{_floor_in_words(floor)}: {network}{judge} (default {_distance(results.default, network)}{best})"
            tables.append((title, heads, rows))
    return tables


def _plan_tables(results: PlanResults) -> list[tuple[str, list[str], list[dict[str, Any]]]]:
    """Build, for each floor, a table of all plans."""
    heads = ["method", "compute", "seconds", "agreement", *_networks(results), "plan"]
    tables = []
    for floor in results.config.floors:
        rows = [
            {
                "cells": [
                    METHODS[front.method].title,
                    f"{point.compute:.1%}",
                    f"{_seconds_share(front, point):.1%}",
                    f"{point.fresh.shares['agreement']:.1%}" if "agreement" in point.fresh.shares else "",
                    *(_distance(point, network) for network in _networks(results)),
                    _plan_in_words(point.plan),
                ],
                "ours": front.method == OURS,
            }
            for front in results.fronts
            if front.floor == floor
            for point in front.points
        ]
        tables.append((f"{_floor_in_words(floor)}: all plans", heads, rows))
    return tables


def _described(results: PlanResults) -> dict[str, Any]:
    return {
        "default": results.default.described_with_plan,
        "fronts": [
            {
                "method": front.method,
                "agreement": front.floor,
                "points": [
                    {**point.described_with_plan, "seconds_over_default": _seconds_share(front, point)}
                    for point in front.points
                ],
            }
            for front in results.fronts
        ],
    }


def _conditions_in_words(results: PlanResults) -> str:
    config, is_own = results.config, results.default.plan.spacing is not None
    searched = "steps, scheduler, spacing and guidance" if is_own else "steps and guidance scale"
    return (
        f"Every method had {config.trials} trials of the same search over {searched}, with its own settings, on "
        f"{' and '.join(f'{count:,}' for count in config.images)} images, by "
        f"{', '.join(config.features)}; it began with the full model's best guidance. Up to {config.points} plans of "
        f"each were measured on {config.confirm:,} fresh images, ± one standard error by bootstrap; of those with at "
        f"most so much compute, {', '.join(config.judges)}, which no search went by, names the one in the tables of "
        f"equal compute. Compute "
        f"is FLOPs over those of the default, {plan_in_words(results.default.plan)}; seconds were timed in turns with "
        f"it. Real images: {config.reference}."
    )


def _seconds_share(front: Front, point: Confirmed) -> float:
    return (point.seconds or 0.0) / (front.default.seconds or 1.0)


def _difference(mine: Confirmed, rival: Confirmed, network: str) -> float:
    """Return the difference of two distances in standard errors of it."""
    error = math.hypot(mine.fresh.errors[network], rival.fresh.errors[network])
    return (mine.fresh.distances[network] - rival.fresh.distances[network]) / max(error, 1e-12)


def _distance(point: Confirmed, network: str) -> str:
    return with_error(point.fresh.distances[network], point.fresh.errors[network])


def _plan_in_words(plan: SamplingPlan) -> str:
    cache = f"; {plan.cache}" if isinstance(plan, CachedPlan) else ""
    return plan_in_words(plan) + cache


def _floor_in_words(floor: float) -> str:
    return f"Class agreement of at least {floor:.0%}" if floor else "No floor"


def _networks(results: PlanResults) -> tuple[str, ...]:
    return (*results.config.features, *results.config.judges)
