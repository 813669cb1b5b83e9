"""`python -m tdnet_ops.bench`."""

import sys

from tdnet_ops.bench.command import main

sys.exit(main(sys.argv[1:]))
