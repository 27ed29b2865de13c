"""``python -m fruits``: the command line."""

import signal
import sys

from fruits.cli.app import app

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave by the way that ends what was started
    app(prog_name="fruits")
