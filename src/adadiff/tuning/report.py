"""Reports of a search: a table, a sentence on guidance, and the front drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from adadiff.policies import ExitPolicy, NeverExit, ScheduleExit
from adadiff.sampling import SamplingPlan
from adadiff.tuning.result import Confirmed, Tuning
from adadiff.utils.files import atomic_write
from adadiff.utils.front import pareto_front
from adadiff.utils.text import with_error

MARKERS = "osDv^P"


def tuning_table(tuning: Tuning) -> Table:
    """Build a table of the default, of the full model at its own best guidance, and of the plans found.

    All figures are those of fresh images. Distances are by every network; those that the search did not go by are
    marked as judges. What the plans are stands in `plans_in_words`.
    """
    networks = (*tuning.networks, *tuning.judges)
    columns = [f"{name}{'*' if name in tuning.judges else ''}" for name in networks]
    shares = list(dict.fromkeys(name for each in _rows(tuning).values() for name in each.fresh.shares))
    title = f"Fréchet distance and more, {tuning.default.fresh.images:,} fresh images; *: a judge; s: seconds an image"
    headings = ("", "compute", *columns, *(name.replace("_", " ") for name in shares), "s")
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fits into 80 characters
    for heading in headings:
        table.add_column(heading, min_width=len(heading))
    for name, each in _rows(tuning).items():
        fresh = each.fresh
        table.add_row(
            name,
            f"{each.compute:.1%}",
            *(with_error(fresh.distances[network], fresh.errors[network]) for network in networks),
            *(f"{fresh.shares[share]:.3f}" if share in fresh.shares else "" for share in shares),
            "" if each.seconds is None else f"{each.seconds:.3g}",
            style="bold" if each is tuning.chosen else "",
        )
    return table


def plans_in_words(tuning: Tuning) -> str:
    """Describe the plans of the table, one line each."""
    return "\n".join(f"{name}: {plan_in_words(each.plan)}" for name, each in _rows(tuning).items())


def plan_in_words(plan: SamplingPlan) -> str:
    """Describe a plan in a few words."""
    layers = "all layers" if isinstance(plan.policy, NeverExit) else _exits_in_words(plan.policy)
    spacing = "" if plan.spacing is None else f" ({plan.spacing})"
    return f"{plan.steps} steps of {plan.scheduler}{spacing}, {plan.guidance.in_words}, {layers}"


def outcome_in_words(tuning: Tuning) -> str:
    """Say in a few sentences what was found, and plainly where the plans differ in guidance."""
    best, chosen = tuning.best_full, tuning.chosen
    if chosen is None:
        nearest = tuning.nearest
        goals = {**tuning.goal.floors, "compute": tuning.budget}
        reached = ", ".join(
            f"{name} {_reached(nearest, name)} of {_shown(name, goals[name])}"
            for name in nearest.missed(tuning.goal, tuning.budget)
        )
        return f"no plan met the floors on fresh images: the nearest, {plan_in_words(nearest.plan)}, reaches {reached}"
    ratio = tuning.by_judges(chosen) / tuning.by_judges(best)
    error = chosen.fresh.relative_error(tuning.judges, best.fresh)
    against = f"{with_error(ratio, error)} of the distance of the full model at its own best guidance"
    default = f"{tuning.by_judges(chosen):.3g} of the default's, at {chosen.compute:.1%} of the default's compute"
    guidances = {
        "the default": tuning.default.plan.guidance,
        "the full model's best": best.plan.guidance,
        "the plan": chosen.plan.guidance,
    }
    if len(set(guidances.values())) == 1:
        said = f"all three have the same guidance: {chosen.plan.guidance.in_words}"
    else:
        said = "guidance differs: " + "; ".join(f"{name}: {g.in_words}" for name, g in guidances.items())
    judged = f"by {', '.join(tuning.judges)}, the plan has {against}, and {default}"
    return f"{judged}. By the networks of the search, {_others_in_words(tuning, chosen)}. {said[0].upper()}{said[1:]}."


def _others_in_words(tuning: Tuning, chosen: Confirmed) -> str:
    """Say how a plan compares with the full model at its best by each network that the search went by."""
    best, said = tuning.best_full.fresh, []
    for name in tuning.networks:
        ratio, error = chosen.fresh.relative((name,), best), chosen.fresh.relative_error((name,), best)
        worse = ": worse" if ratio > 1 + 2 * error else ""
        said.append(f"{with_error(ratio, error)} ({name}{worse})")
    return f"it has {', '.join(said)} of the full model's"


def draw_tuning(tuning: Tuning, path: Path) -> None:
    """Draw the search on the left, and what fresh images say of the best plans on the right, into an image file."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_trials(left, tuning)
    _draw_confirmed(right, tuning)
    with atomic_write(path) as part:
        figure.savefig(part, dpi=120)


def _draw_trials(axes: Any, tuning: Tuning) -> None:
    met = [(each.compute, each.objective) for each in tuning.trials if each.all_missed == 0]
    missed = [(each.compute, each.objective) for each in tuning.trials if each.all_missed > 0]
    for points, colour, label in ((missed, "lightgrey", "misses a floor or the budget"), (met, "tab:blue", "trials")):
        if points:
            axes.scatter(*zip(*points, strict=True), s=16, color=colour, label=label)
    if met:
        front = pareto_front(met)
        axes.step(*zip(*front, strict=True), where="post", marker="o", color="tab:orange", label="front")
    axes.axhline(1, color="grey", linestyle=":", label="default, all layers")
    if tuning.budget is not None:
        axes.axvline(tuning.budget, color="tab:red", linewidth=1, label="budget")
    values = [objective for _, objective in met] or [1.0]
    axes.set(
        title=f"search: {len(tuning.trials)} trials by {', '.join(tuning.networks)}",
        xlabel="compute over the default's",
        ylabel="distance over the default's",
        ylim=(0.9 * min(1.0, *values), 1.1 * max(1.5, sorted(values)[len(values) // 2])),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_confirmed(axes: Any, tuning: Tuning) -> None:
    rows, networks = _rows(tuning), (*tuning.networks, *tuning.judges)
    for place, network in enumerate(networks):
        reference = tuning.default.fresh.distances[network]
        axes.errorbar(
            [row + 0.12 * (place - (len(networks) - 1) / 2) for row in range(len(rows))],
            [each.fresh.distances[network] / reference for each in rows.values()],
            yerr=[each.fresh.errors[network] / reference for each in rows.values()],
            marker=MARKERS[place % len(MARKERS)],
            linestyle="",
            capsize=2,
            fillstyle="full" if network in tuning.judges else "none",
            label=f"{network}{', judge' if network in tuning.judges else ''}",
        )
    axes.axhline(1, color="grey", linestyle=":")
    if tuning.chosen is not None:  # the last row
        axes.axvspan(len(rows) - 1.4, len(rows) - 0.6, color="tab:green", alpha=0.12)
    axes.set(title="on fresh images, at so much of the default's compute", ylabel="distance over the default's")
    labels = [f"{name.replace(' at ', chr(10) + 'at ')}\n{each.compute:.1%}" for name, each in rows.items()]
    axes.set_xticks(range(len(rows)), labels)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")


def _rows(tuning: Tuning) -> Mapping[str, Confirmed]:
    """Name the plans of the report, in its order."""
    rows = {"default": tuning.default, "full model at its best": tuning.best_full}
    rows |= {f"plan {k}": each for k, each in enumerate(tuning.tuned, 1) if each is not tuning.chosen}
    return rows if tuning.chosen is None else {**rows, "chosen": tuning.chosen}


def _reached(confirmed: Confirmed, name: str) -> str:
    return _shown(name, confirmed.compute if name == "compute" else confirmed.fresh.shares[name])


def _shown(name: str, value: float | None) -> str:
    return f"{value:.1%}" if name == "compute" else f"{value:.3f}"


def _exits_in_words(policy: ExitPolicy) -> str:
    if isinstance(policy, ScheduleExit):
        return f"layers {' '.join(map(str, policy.layers))}"
    return str(policy)
