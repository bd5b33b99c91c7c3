"""`python -m misdirect`."""

import sys

from misdirect.cli import main

sys.exit(main())
