"""Reports of a calibration: a table and a plot of the trade-off between compute and error."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from adadiff.calibration.result import Calibration, Point
from adadiff.calibration.steps import StepsChoice
from adadiff.utils.files import atomic_write


def calibration_table(calibration: Calibration, *others: Calibration) -> Table:
    """Build a table of every policy on the trade-off curve, and of the chosen ones measured again on fresh samples.

    Columns are the kind of policy, its compute, and its error with the standard error.

    Args:
        calibration: The calibration.
        others: Calibrations for other goals, from the same samples.
    """
    found = (calibration, *others)
    table = Table("policy", "compute", "error", "", title="error at each compute")
    for point in calibration.trade_off:
        table.add_row(*_row(point), "")
    for each in found:
        table.add_section()
        table.add_row(*_row(each.predicted), "chosen")
        table.add_row(*_row(each.checked), "fresh samples", style="bold")
        for point in each.beside:
            table.add_row(*_row(point), "fresh samples, for comparison")
        for point in each.fewer_steps:
            table.add_row(*_row(point), "fresh samples, all layers")
    table.caption = "\n".join(map(_in_words, found))
    return table


def _in_words(calibration: Calibration) -> str:
    """Return what the fresh samples show of a policy, in one line."""
    bound = f"expected error below {calibration.error_bound:.2g} at {calibration.goal.confidence:.0%} confidence"
    shown = f"{bound}, by fresh samples; {calibration.speedup:.2f}x as fast as the full model"
    return f"{calibration.checked.compute:.1%}: {shown}"


def steps_table(choice: StepsChoice) -> Table:
    """Build a table of all numbers of steps that were tried, the best one in bold."""
    title = f"error against {choice.reference_steps} steps with all layers"
    table = Table("steps", "layers", "compute", "error", title=title)
    for trial in (choice.default, *choice.trials):
        table.add_row(str(trial.steps), *_row(trial), style="bold" if trial is choice.best else "")
    return table


def draw_calibration(calibration: Calibration, path: Path, *others: Calibration) -> None:
    """Plot error against compute into an image file, one line per kind of policy, with a star for each chosen one.

    Fewer steps with all layers are another line, where they were measured.

    Args:
        calibration: The calibration.
        path: The image file.
        others: Calibrations for other goals, from the same samples.
    """
    found = (calibration, *others)
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(point.kind for point in calibration.trade_off):
        points = sorted((p for p in calibration.trade_off if p.kind == kind), key=lambda point: point.compute)
        axes.plot([p.compute for p in points], [p.error for p in points], marker="o", markersize=4, label=kind)
    if fewer := calibration.fewer_steps:
        computes, errors = [p.compute for p in fewer], [p.error for p in fewer]
        axes.plot(computes, errors, marker="s", color="gray", linestyle="--", label="fewer steps, all layers")
        for point in fewer:
            axes.annotate(point.kind, (point.compute, point.error), (6, 4), textcoords="offset points", color="gray")
    for each in found:
        checked = each.checked
        label = "chosen" if each is calibration else None
        axes.plot(checked.compute, checked.error, marker="*", markersize=16, color="black", linestyle="", label=label)
        label = f"upper bound, {each.goal.confidence:.0%} confidence" if each is calibration else None
        axes.plot([checked.compute] * 2, [checked.error, each.error_bound], color="black", linewidth=1, label=label)
    axes.set(
        xlabel="compute, as a fraction of the full model's",
        ylabel="mean error against the full model's images",
        yscale="log",
    )
    kinds = " and ".join(dict.fromkeys(each.predicted.kind for each in found))
    costs = ", ".join(f"{each.checked.compute:.0%} of the compute, {each.speedup:.2f}x as fast" for each in found)
    figure.suptitle(f"{kinds}, {calibration.calibrated_for.steps} steps: {costs}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right center")
    with atomic_write(path) as part:
        figure.savefig(part, dpi=120)


def _row(point: Point) -> tuple[str, str, str]:
    return point.kind, f"{point.compute:.1%}", point.error_in_words
