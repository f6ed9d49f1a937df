"""`python -m mccompile` is `mccompile`."""

import sys

from mccompile.cli import main

sys.exit(main())
