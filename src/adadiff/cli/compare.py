"""`adadiff compare`: compare our exits with other methods."""

from __future__ import annotations

import sys
from pathlib import Path

from tyro.conf import Positional

from adadiff.cli.output import console


def compare_command(config: Positional[str], out: Path, so_far: bool = False) -> None:
    """Compare our exits with other methods: train what is missing, evaluate everything, write the report.

    The folder gets index.html (everything on one page), results.json and results.csv. After an interruption the same
    command continues; started several times at once, the processes share the work.

    Args:
        config: The comparison: digits, digits-policies, cifar10, cifar10-policies, cifar10-guided-policies, or a JSON
            file like theirs.
        out: Folder for the report.
        so_far: Write the report of the finished cells, without training or sampling.
    """
    from adadiff.comparison import compare, load_config, winner_in_words, write_report
    from adadiff.training import Interrupted

    chosen = load_config(config)
    try:
        results = compare(chosen, out, so_far)
    except Interrupted as interruption:
        console.print(f"{interruption}; run the same command again to continue")
        sys.exit(130)
    write_report(results, out)
    console.print(winner_in_words(results))
    console.print(f"the report is {out / 'index.html'}")
