"""Tables and plot of `stock_caches.py`; called with files of its results, it prints whether ours met what was asked.

python benchmarks/stock_report.py docs/results/stock/*-guidance-*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
from stock_measure import Cell

from adadiff.utils.text import with_error

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NEAR = 0.05  # a compute further below the target is stated
MISSING = "—"


def overview(cells: Sequence[Cell]) -> str:
    """Return the errors as a Markdown table, and the Fréchet distances, if there are any, as a second one."""
    tables = [_by_target(cells, "error at", _error)]
    if any(cell.frechet for cell in cells):
        full = next(cell for cell in cells if cell.method == "full model")
        tables.append(_by_target(cells, f"Fréchet distance, of the full model {_distance(full)}, at", _distance))
    return "\n\n".join(tables)


def _by_target(cells: Sequence[Cell], title: str, shown: Callable[[Cell | None], str]) -> str:
    """Return a Markdown table: a row for each method, a column for each target."""
    measured = [cell for cell in cells if cell.method != "full model"]
    targets = sorted({cell.target for cell in measured})
    rows = []
    for method in dict.fromkeys(cell.method for cell in measured):
        by_target = {cell.target: cell for cell in measured if cell.method == method}
        rows.append([method, *(shown(by_target.get(target)) for target in targets)])
    return markdown([title, *(f"{target:.0%} of the compute" for target in targets)], rows)


def details(cells: Sequence[Cell]) -> str:
    """Return everything that was measured as a Markdown table."""
    frechet = any(cell.frechet for cell in cells)
    rows = []
    for cell in sorted(cells, key=lambda cell: cell.target):
        row = [f"{cell.target:.0%}", cell.method]
        if cell.compute is None or cell.error is None or cell.seconds is None or cell.full_seconds is None:
            rows.append([*row, *[MISSING] * (3 + frechet), cell.note])
            continue
        time = f"{cell.seconds:.2f} of {cell.full_seconds:.2f} ({cell.seconds / cell.full_seconds:.0%})"
        row += [f"{cell.compute:.1%}", f"{cell.error:.3%} ± {cell.standard_error:.3%}", time]
        row += [_distance(cell)] if frechet else []
        remarks = [cell.setting, cell.note, "" if cell.repeats else "a second call does not repeat the first"]
        rows.append([*row, "; ".join(remark for remark in remarks if remark)])
    distance = ["Fréchet distance"] if frechet else []
    header = ["target", "method", "compute", "error", "seconds, of the full model's", *distance, "setting"]
    return markdown(header, rows)


def asked(paths: Iterable[Path]) -> str:
    """Return a Markdown table of what was asked of ours and what was measured, for each file of results.

    Asked are, at 55% of the compute, an error below a quarter of fewer steps' and below every cache's, and at 30% below
    fewer steps' and below every cache's.
    """
    rows = []
    for path in paths:
        cells = [Cell(**values) for values in json.loads(path.read_text())["cells"].values()]
        for target, part in ((0.30, 1.0), (0.55, 0.25)):
            errors = {cell.method: cell.error for cell in cells if cell.target == target and cell.error is not None}
            ours, fewer = errors.get("ours"), errors.get("fewer steps")
            caches = {name: error for name, error in errors.items() if name != "fewer steps" and "ours" not in name}
            if ours is None or fewer is None:
                continue
            best = min(caches, key=caches.__getitem__)
            met = ["met" if ours < bound else "not met" for bound in (part * fewer, caches[best])]
            limit = f"{part * fewer:.3%}" + ("" if part == 1 else f" (a quarter of {fewer:.3%})")
            cache = f"{caches[best]:.3%}, {best}"
            rows.append([path.stem, f"{target:.0%}", f"{ours:.3%}", limit, met[0], cache, met[1]])
    header = ["results", "compute", "ours", "asked: below fewer steps", "", "asked: below the best cache", ""]
    return markdown(header, rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def _error(cell: Cell | None) -> str:
    if cell is None or cell.error is None or cell.compute is None:
        return MISSING
    spent = f" (at {cell.compute:.0%})" if cell.compute < cell.target - NEAR else ""
    return f"{cell.error:.3%}{spent}"


def _distance(cell: Cell | None) -> str:
    return MISSING if cell is None or cell.frechet is None else with_error(*cell.frechet)


def plot(cells: Sequence[Cell], title: str, path: Path) -> None:
    """Plot the error against the compute, one line for each method."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    markers = iter("osD^vPX*")
    for method in dict.fromkeys(cell.method for cell in cells):
        points = {
            (100 * cell.compute, 100 * cell.error)
            for cell in cells
            if cell.method == method and cell.compute is not None and cell.error
        }
        if points:
            ours = method.startswith("ours")
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, marker=next(markers), label=method, linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2)
    axes.set(title=title, xlabel="compute, % of the full model's", ylabel="error, % of the variance", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    print(asked(map(Path, sys.argv[1:])))
