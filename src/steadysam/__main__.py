"""`python -m steadysam`."""

from steadysam.cli import main

main()
