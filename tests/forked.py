"""Commands of ours in processes that are forked from one that has PyTorch loaded: an
interpreter that is started anew imports it for seconds."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

# Windows has no forks; what is started there is started anew.
SERVER = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
SERVER.set_forkserver_preload(["resnet_lib.train"])


def run(module: str, arguments: Sequence[str], log: str, environment: dict) -> None:
    """What a child does: it writes to `log` as a process writes to its streams."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, "utf-8") for n in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module("torch").set_num_threads(1)
    sys.exit(importlib.import_module(module).main(arguments))


def main(arguments: Sequence[str]) -> None:
    """`python -m forked`: what is loaded when `resnet_lib.train` is."""
    print(*sys.modules)


def wait_until(done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Forked:
    """As much of `subprocess.Popen` as the tests need, for `python -m MODULE …`."""

    def __init__(self, command, stdout=None, env=None, **_) -> None:
        _, _, module, *arguments = map(str, command)
        self.own = tempfile.NamedTemporaryFile()  # noqa: SIM115  gone with this object
        self.log = stdout.name if stdout else self.own.name
        inside = (module, arguments, self.log, dict(env or os.environ))
        # What a failed test leaves ends with the tests.
        self.process = SERVER.Process(target=run, args=inside, daemon=True)
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self, seconds: float = 180) -> tuple[int, str]:
        """Its exit code and what it printed; a process that hangs is a failure."""
        self.process.join(seconds)
        if self.poll() is None:
            self.process.terminate()  # which ends the processes that it started
            raise subprocess.TimeoutExpired("a forked command", seconds)
        with open(self.log, encoding="utf-8") as file:
            return self.returncode, file.read()
