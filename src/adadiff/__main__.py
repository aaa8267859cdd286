"""`python -m adadiff`, for launchers such as `torchrun --nproc_per_node 2 -m adadiff`."""

from adadiff.cli import main

main()
