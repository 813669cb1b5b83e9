"""`python -m tdnet.cli` is the command `tdnet`."""

from tdnet.cli.app import main

main()
