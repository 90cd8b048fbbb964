"""The makers' commands."""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # as `resnet_lib` does, before that is loaded

    def _stop(*_: object) -> None:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)

    signal.signal(signal.SIGINT, _stop)
