"""``python -m host.quantize``.

The attribute ``host.quantize`` is the function :func:`host.quantizer.quantize`; importing this
module would hide it, so that nothing does.
"""

import sys

from host.cli.quantize import main

if __name__ == "__main__":
    sys.exit(main())
