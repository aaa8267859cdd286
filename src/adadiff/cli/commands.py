"""All commands by name, in the order in which the help lists them."""

from __future__ import annotations

from collections.abc import Callable

from adadiff.cli.adapt import adapt_command
from adadiff.cli.calibrate import calibrate_command
from adadiff.cli.compare import compare_command
from adadiff.cli.convert import convert_command
from adadiff.cli.demo import demo_command
from adadiff.cli.encode import encode_command
from adadiff.cli.evaluate import evaluate_command
from adadiff.cli.export import export_command
from adadiff.cli.info import info_command
from adadiff.cli.sample import sample_command
from adadiff.cli.serve import serve_command
from adadiff.cli.train import train_command
from adadiff.cli.tune import tune_command

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train_command,
    "info": info_command,
    "encode": encode_command,
    "sample": sample_command,
    "serve": serve_command,
    "evaluate": evaluate_command,
    "calibrate": calibrate_command,
    "tune": tune_command,
    "adapt": adapt_command,
    "compare": compare_command,
    "demo": demo_command,
    "export": export_command,
    "convert": convert_command,
}
