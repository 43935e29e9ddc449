"""``python -m host.offload``."""

import sys

from host.cli.offload import main

if __name__ == "__main__":
    sys.exit(main())
