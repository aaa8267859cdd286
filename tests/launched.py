"""Runs a command, if there is one, in one of several processes, and says which: torchrun tests/launched.py train ..."""

import sys

from adadiff.cli import main
from adadiff.utils.processes import process_state

if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1:])
    state = process_state()
    print(f"process {state.process_index} of {state.num_processes}")
