"""The makers' commands."""

import sys
from signal import SIGINT, signal

if sys.argv[:1] == ["-m"]:  # as `resnet_lib` does, before that is loaded
    signal(SIGINT, lambda *_: sys.exit(print("Stopped.", file=sys.stderr) or 130))
