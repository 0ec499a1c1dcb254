"""`python -m bedplate_traffic` is the command `traffic`."""

from bedplate_traffic.cli import main

main()
