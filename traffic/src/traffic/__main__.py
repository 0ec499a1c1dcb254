"""`python -m traffic` is the command `traffic`."""

from traffic.cli import main

main()
