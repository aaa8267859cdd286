"""`python -m adadiff`, for launchers such as `accelerate launch -m adadiff`."""

from adadiff.cli import main

main()
