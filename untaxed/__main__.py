"""`python -m untaxed` is the command line."""

from .cli import main

main()
