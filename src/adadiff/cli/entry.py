"""The `adadiff` command: dispatches its arguments to a subcommand and turns errors into exit codes."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

import adadiff
from adadiff.utils.errors import Diverged, InputError, lookup

DESCRIPTION = f"""{adadiff.__doc__}

Every command also takes --import MODULE, which imports a module with your own backbones, policies and presets, and
--debug, which prints the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `adadiff` command.

    Exits with 0 if all went well, 2 for bad input, 130 if interrupted, 1 for anything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(f"adadiff {adadiff.__version__}")
        return
    _print_warnings()
    try:
        words = _import_modules(words)
        import tyro

        from adadiff.cli.commands import COMMANDS

        _require_known_preset(words)
        _require_options_once(words)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="adadiff", description=DESCRIPTION, args=words or ["--help"]
        )
    except BrokenPipeError:
        os._exit(0)
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"adadiff: {error}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"adadiff: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("adadiff: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split())
        print(
            f"adadiff: {type(error).__name__}: {reason} (run it again with --debug for the traceback)", file=sys.stderr
        )
        sys.exit(1)


def _import_modules(words: Sequence[str]) -> list[str]:
    """Import the modules named by `--import`, which register backbones, policies and presets.

    Returns:
        The other arguments.

    Raises:
        InputError: If there is no such module.
    """
    others, rest = [], iter(words)
    for word in rest:
        option, _, module = word.partition("=")
        if option != "--import":
            others.append(word)
            continue
        module = module or next(rest, "")
        if not module:
            raise InputError("--import names no module: write --import MODULE")
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise InputError(f"--import {module}: {error}; set PYTHONPATH to the folder of your module") from error
    return others


def _print_warnings() -> None:
    """Print the library's warnings on stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("adadiff: %(message)s"))
    logging.getLogger("adadiff").handlers = [handler]


def _require_known_preset(words: Sequence[str]) -> None:
    """Raise InputError, with the closest names, if `train` is followed by an unknown preset."""
    if len(words) > 1 and words[0] == "train" and not words[1].startswith("-"):
        from adadiff.training.presets import PRESETS

        lookup(words[1], PRESETS, "preset")


def _require_options_once(words: Sequence[str]) -> None:
    """Raise InputError if an option is repeated, because the parser would silently use the last one."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise InputError(f"{option} is given {options.count(option)} times: give it once, with all its values")
