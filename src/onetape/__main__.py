"""`python -m onetape`: the command line."""

import sys

from onetape.cli import main

if __name__ == "__main__":
    sys.exit(main())
