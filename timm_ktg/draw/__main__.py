"""The program: `python -m timm_ktg.draw`."""

import sys

from .picture import main

if __name__ == "__main__":
    sys.exit(main())
