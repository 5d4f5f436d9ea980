"""`python -m dynamics.cli` is the same program as `dynamics`."""

import sys

from dynamics.cli import main

sys.exit(main())
