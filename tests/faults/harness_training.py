"""Kill, starve and damage real training processes, and prove that no work is lost.

`pytest tests` does not collect this file; it is run by its name, and in full by
`make faults`. FAULT_KILLS scales it (5, in full 30). FAULT_SEED, drawn anew each time,
moves the random moments; it is printed at the end. A run that went through a fault has
to end like the run that was left alone: the same weights, the same history but for the
clock, the same files.

Most processes are forked from this one, which has the libraries loaded: a start takes
no time, and a fault can be set up inside. The run left alone and the one stopped by
SIGTERM are started afresh by `python -m resnet_lib.train`. Written for Linux.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import io
import itertools
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  loaded here, and so in every fork
import torch
from tqdm import tqdm

from resnet_lib import checkpoints, datasets, train
from resnet_lib.runs import load_weights, read_history

FULL = 30
KILLS = int(os.environ.get("FAULT_KILLS", 5))
SEED = int(os.environ.get("FAULT_SEED", random.randrange(1_000)))
COUNTS = Counter(tried=0, resumed=0, refused=0, lost=0)

ITERATIONS = 30
ARGUMENTS = shlex.split(
    f"--model resnet8 --data digits --iterations {ITERATIONS} --batch-size 8 "
    "--validation 100 --log-every 3 --eval-every 9 --precision fp32 --device cpu "
    "--checkpoint-seconds 0.5"
)
ALWAYS = ("--checkpoint-seconds", "0")  # a checkpoint after every iteration
BRIEFLY = ("--max-minutes", "1e-9")  # one iteration, then a checkpoint
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")
RECORD = {"environment.json", "history.csv", "recipe.json", "weights.pt"}
PROGRAM = "python -m resnet_lib.train: "

# One thread here and in every process, so that bits can be compared.
torch.set_num_threads(1)


# --- a process, and what it leaves behind ---------------------------------------------


@dataclass
class Outcome:
    """How a process ended: its exit code (-9 if killed) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def iteration(self) -> int:
        """Where it says that it stopped."""
        return int(re.search(r"at iteration ([\d,]+)", self.out)[1].replace(",", ""))

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr that are not the progress bar."""
        lines = re.split(r"[\r\n]+", self.err)
        return [line for line in lines if line and not re.match(r"\w+: +\d+%\|", line)]


class Sitting:
    """A process of the command line on a run folder.

    `before` is called inside it before it trains. With `afresh` the interpreter is
    started anew, as a reader would.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        before: Callable[[], None] = lambda: None,
        afresh: bool = False,
    ) -> None:
        arguments = [*ARGUMENTS, "--run", str(folder), *options]
        # Pipes, since a limit on the size of files must not silence the process.
        self.pipes, ends = zip(os.pipe(), os.pipe(), strict=True)
        for pipe in self.pipes:  # read at the end, so there must be room
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        if afresh:
            command = [sys.executable, "-m", "resnet_lib.train", *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            streams = dict(zip(("stdout", "stderr"), ends, strict=True))
            self.process = subprocess.Popen(command, env=environment, **streams)
        else:
            fork = multiprocessing.get_context("fork")
            inside = (arguments, ends, before)
            self.process = fork.Process(target=self._train, args=inside)
            self.process.start()
        for end in ends:
            os.close(end)

    def _train(self, arguments, ends, before) -> None:
        for number, end in enumerate(ends, start=1):
            os.dup2(end, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        # A lock of its own: a process killed while it draws its bar would keep the one
        # that all forks share, and the next would wait for it for ever.
        tqdm.set_lock(threading.RLock())
        before()
        sys.exit(train.main(arguments))

    @property
    def running(self) -> bool:
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll() is None
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        if self.running:
            os.kill(self.process.pid, number)

    def end(self) -> Outcome:
        """Wait for it."""
        wait_for(lambda: not self.running, 300)
        popen = isinstance(self.process, subprocess.Popen)
        code = self.process.returncode if popen else self.process.exitcode
        printed = []
        for pipe in self.pipes:
            with os.fdopen(pipe, newline="") as file:
                printed.append(file.read())
        return Outcome(code, *printed)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


def rows(folder: Path) -> int:
    """The rows of the history so far."""
    path = folder / "history.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def record(folder: Path) -> tuple[str, str]:
    """A digest of the final weights, and the history without the clock."""
    digest = hashlib.sha256()
    for name, value in load_weights(folder / "weights.pt").items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    history = [{**row, "seconds": 0} for row in read_history(folder / "history.csv")]
    return digest.hexdigest(), str(history)  # NaN equals NaN in text


def ends_like(folder: Path, alone: tuple[str, str], *options: str) -> None:
    """Let a run that went through a fault go on to its end, and compare it."""
    COUNTS["tried"] += 1
    result = Sitting(folder, *options).end()
    whole = result.code == 0 and record(folder) == alone
    COUNTS["resumed" if whole else "lost"] += 1
    assert whole, result
    assert {path.name for path in folder.iterdir()} == RECORD


def refused(result: Outcome, *words: str) -> None:
    """A refusal is one sentence that holds these words, and exit code 1."""
    COUNTS["tried"] += 1
    assert result.code == 1, result
    assert len(result.complaints) == 1, result.err
    (sentence,) = result.complaints
    assert sentence.startswith(PROGRAM), sentence
    for word in words:
        assert word in sentence
    COUNTS["refused"] += 1


@pytest.fixture(scope="module", autouse=True)
def no_cifar10(tmp_path_factory) -> None:
    """An empty data folder, and no address to download from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_LIB_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("RESNET_LIB_CIFAR10_URL", "file:///nowhere")
        yield


@pytest.fixture(scope="module", autouse=True)
def summary(request) -> Iterator[None]:
    """The counts, printed at the end whatever is captured."""
    yield
    counts = ", ".join(f"{number} {name}" for name, number in COUNTS.items())
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nFaults: {counts}. FAULT_SEED={SEED} repeats these.")


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory) -> tuple[Path, float]:
    """A run without a fault: its folder, and how long it takes in a fork."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert Sitting(folder, afresh=True).end().code == 0
    start = time.monotonic()
    assert Sitting(folder.with_name("again")).end().code == 0
    return folder, time.monotonic() - start


@pytest.fixture(scope="module")
def alone(left_alone) -> tuple[str, str]:
    return record(left_alone[0])


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that was stopped with two checkpoints, by name."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    sitting = Sitting(folder, *ALWAYS)
    wait_for(lambda: rows(folder) >= 4)
    sitting.signal(signal.SIGTERM)
    assert sitting.end().code == train.INTERRUPTED
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() >= set(CHECKPOINTS)
    return files


def restore(files: dict[str, bytes], folder: Path, **changed: bytes) -> Path:
    """Put the files into a folder that holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in {**files, **changed}.items():
        (folder / name).write_bytes(content)
    return folder


def state(content: bytes) -> dict:
    """What a checkpoint holds behind its digest."""
    return torch.load(io.BytesIO(content[32:]), weights_only=True)


# --- killed ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment(tmp_path, left_alone, alone, number):
    chance = random.Random(f"{SEED} {number}")
    sitting = Sitting(tmp_path / "run")
    time.sleep(chance.uniform(0, left_alone[1]))
    sitting.signal(signal.SIGKILL)
    code = sitting.end().code  # it may have been faster than the signal
    assert code == -signal.SIGKILL or (
        code == 0 and (tmp_path / "run" / "weights.pt").exists()
    )
    ends_like(tmp_path / "run", alone)


# Where a kill could hurt: in a checkpoint, in an evaluation, while the history is
# written, while the folder is set up, at the end.
MOMENTS = (
    "save",
    "evaluate",
    "append",
    "describe_environment",
    "close",
    "_check_identity",
    "write_atomically",
    "open",
    "_note_machine",
    "state_dict",
    "release",
    "write_json",
)


def trace(note: Callable[[str], None], functions=MOMENTS) -> Callable[[], None]:
    """Call `note` with a function's name before each line of it that is executed."""

    def line(frame, event, _):
        if event == "line":
            note(frame.f_code.co_name)
        return line

    def call(frame, event, _):
        code = frame.f_code
        ours = code.co_name in functions and "resnet_lib" in code.co_filename
        return line if ours else None

    return lambda: sys.settrace(call)


def fuse(lines: int, functions=MOMENTS) -> Callable[[], None]:
    """Die by SIGKILL when so many lines of these functions have been executed."""
    left = itertools.count(lines, -1)

    def burn(_):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return trace(burn, functions)


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[str]:
    """The functions' names, in the order in which their lines are executed."""
    folder = tmp_path_factory.mktemp("lines")
    with open(folder / "lines", "a", buffering=1) as file:
        watch = trace(lambda name: print(name, file=file))
        assert Sitting(folder / "run", *ALWAYS, before=watch).end().code == 0
    return (folder / "lines").read_text().split()


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_between_two_lines(tmp_path, lines, alone, number):
    name = MOMENTS[(SEED * KILLS + number) % len(MOMENTS)]
    chance = random.Random(f"{SEED} {number}")
    line = chance.choice([i for i, other in enumerate(lines) if other == name])
    result = Sitting(tmp_path / "run", *ALWAYS, before=fuse(line)).end()
    assert result.code == -signal.SIGKILL
    ends_like(tmp_path / "run", alone)


def test_killed_again_and_again(tmp_path, alone):
    chance = random.Random(SEED)
    for _ in range(KILLS):
        line = chance.randrange(20, 200)
        Sitting(tmp_path / "run", *ALWAYS, before=fuse(line)).end()
    ends_like(tmp_path / "run", alone)


def test_torn_row_and_half_a_checkpoint(tmp_path, halfway, alone):
    folder = restore(halfway, tmp_path / "run")
    with open(folder / "history.csv", "a") as file:
        file.write("15,0.1,2.2")
    (folder / "checkpoint.pt.part").write_bytes(halfway["checkpoint.pt"][:1000])
    ends_like(folder, alone, "--checkpoint-seconds", "1000")


def test_killed_while_a_damaged_checkpoint_is_replaced(tmp_path, halfway):
    """Before every line of the first save; the one good checkpoint has to survive."""
    damaged = {"checkpoint.pt": halfway["checkpoint.pt"][:-1]}
    for line in itertools.count(step=1 if KILLS >= FULL else 2):
        folder = restore(halfway, tmp_path / "run", **damaged)
        kill = fuse(line, ("save", "write_atomically"))
        if Sitting(folder, *BRIEFLY, before=kill).end().code == 0:
            break
        COUNTS["tried"] += 1
        result = Sitting(folder, *BRIEFLY).end()
        COUNTS["resumed" if result.code == 0 else "lost"] += 1
        assert result.code == 0, (line, result)
        assert result.iteration >= state(halfway["checkpoint.pt"])["iteration"]
    assert line > 12  # otherwise no save was hit


# --- asked to stop --------------------------------------------------------------------


def test_sigterm_stops_after_the_iteration(tmp_path, alone):
    folder = tmp_path / "run"
    sitting = Sitting(folder, "--checkpoint-seconds", "1000", afresh=True)
    wait_for(lambda: rows(folder) >= 3)
    sitting.signal(signal.SIGTERM)
    result = sitting.end()
    assert result.code == train.INTERRUPTED and not result.complaints, result
    assert "Stopped (interrupted) at iteration" in result.out
    assert 9 <= result.iteration < ITERATIONS
    kept = state((folder / "checkpoint.pt").read_bytes())
    assert kept["iteration"] == result.iteration  # nothing is done twice
    ends_like(folder, alone)


def test_second_sigterm_stops_at_once_and_loses_nothing(tmp_path, halfway, alone):
    folder = restore(halfway, tmp_path / "run")
    sitting = Sitting(folder)
    wait_for(lambda: rows(folder) >= 6)
    while sitting.running:
        sitting.signal(signal.SIGTERM)
        time.sleep(0.001)
    ends_like(folder, alone)


# --- the disk -------------------------------------------------------------------------


def limit(size: int) -> Callable[[], None]:
    """No file may grow beyond so many bytes, as if the disk were full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [0, 150, 600, 100_000])
def test_disk_full_from_the_start(tmp_path, alone, size):
    folder = tmp_path / "run"
    result = Sitting(folder, *ALWAYS, before=limit(size)).end()
    refused(result, str(folder), "cannot be written", "File too large")
    ends_like(folder, alone)


@pytest.mark.parametrize("room", [-1, 0, 60, 100_000])
def test_disk_full_on_the_way(tmp_path, halfway, alone, room):
    """`room` bytes more than the history has: it fails at once, in a row, in a save."""
    folder = restore(halfway, tmp_path / "run")
    size = len(halfway["history.csv"]) + room
    for _ in range(2):  # a second try must not eat the checkpoint before
        result = Sitting(folder, *ALWAYS, before=limit(size)).end()
        refused(result, str(folder), "cannot be written", "File too large")
    if room == 100_000:
        result = Sitting(folder, "--max-minutes", "0", before=limit(size)).end()
        refused(result, "cannot be written")
    ends_like(folder, alone)


def test_disk_full_at_the_end(tmp_path, alone):
    """The final weights do not fit: the last checkpoint is still there."""
    folder = tmp_path / "run"
    assert Sitting(folder, *BRIEFLY).end().code == 0
    never = ("--checkpoint-seconds", "1000")
    refused(Sitting(folder, *never, before=limit(100_000)).end(), "cannot be written")
    assert state((folder / "checkpoint.pt").read_bytes())["iteration"] == 1
    ends_like(folder, alone)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def become_nobody() -> None:
    """Root may write anywhere; nobody may not. In a fork."""
    if os.geteuid() == 0:
        digits = datasets.load_digits()  # nobody may not read an environment in /root
        datasets.load_digits = lambda: digits
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def test_read_only_folder(open_folder, halfway, alone):
    folder = restore(halfway, open_folder / "run")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    result = Sitting(folder, before=become_nobody).end()
    refused(result, str(folder), "cannot be written", "Permission denied")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == halfway
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    ends_like(folder, alone)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        refused(Sitting(folder).end(), str(folder), "Choose another")


def test_folder_renamed_between_two_sittings(tmp_path, halfway, alone):
    restore(halfway, tmp_path / "run").rename(tmp_path / "moved")
    ends_like(tmp_path / "moved", alone)


def test_folder_renamed_under_a_process(tmp_path, alone):
    sitting = Sitting(tmp_path / "run", *ALWAYS)
    wait_for(lambda: rows(tmp_path / "run") >= 3)
    (tmp_path / "run").rename(tmp_path / "moved")
    refused(sitting.end(), str(tmp_path / "run"), "cannot be written")
    ends_like(tmp_path / "moved", alone)


# --- the clock ------------------------------------------------------------------------


def turn_back_the_clock() -> None:
    """Every look at the calendar is an hour earlier than the one before."""
    hours = itertools.count(1)
    now = time.time
    time.time = lambda: now() - 3600 * next(hours)


def test_clock_that_goes_backwards(tmp_path, halfway, alone):
    folder = restore(halfway, tmp_path / "run")
    tomorrow = time.time() + 86_400
    for name, age in (("checkpoint.pt", 9e8), ("checkpoint.previous.pt", tomorrow)):
        os.utime(folder / name, (age, age))
    result = Sitting(folder, *BRIEFLY, before=turn_back_the_clock).end()
    assert result.iteration == state(halfway["checkpoint.pt"])["iteration"] + 1
    ends_like(folder, alone)
    seconds = [row["seconds"] for row in read_history(folder / "history.csv")]
    assert seconds == sorted(seconds) and seconds[0] >= 0


# --- damaged and hostile files --------------------------------------------------------


def damages(content: bytes) -> list[bytes]:
    """A flipped bit at places all over the file, and the file cut at several lengths.

    The first 32 bytes are the digest.
    """
    chance = random.Random(SEED)
    places = [0, 31, 32, len(content) - 1]
    places += [chance.randrange(len(content)) for _ in range(KILLS)]
    flipped = []
    for place in places:
        copy = bytearray(content)
        copy[place] ^= 1 << chance.randrange(8)
        flipped.append(bytes(copy))
    lengths = [0, 1, 31, 32, 33, len(content) // 2, len(content) - 1]
    return flipped + [content[:length] for length in lengths]


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, halfway, alone):
    before = state(halfway["checkpoint.previous.pt"])["iteration"]
    for damaged in damages(halfway["checkpoint.pt"]):
        COUNTS["tried"] += 1
        files = {"checkpoint.pt": damaged}
        folder = restore(halfway, tmp_path / "run", **files)
        result = Sitting(folder, *BRIEFLY).end()
        assert result.code == 0 and not result.complaints, result
        said = f"{folder / 'checkpoint.pt'} is damaged; going on from checkpoint.prev"
        assert said in result.out
        assert result.iteration == before + 1
        COUNTS["refused"] += 1
    ends_like(folder, alone)


def test_both_checkpoints_damaged(tmp_path, halfway, alone):
    folder = restore(halfway, tmp_path / "run")
    for name in CHECKPOINTS:
        (folder / name).write_bytes(damages(halfway[name])[2])
    damaged = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(Sitting(folder).end(), "is damaged", "Delete checkpoint.pt and")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == damaged
    for name in CHECKPOINTS:  # what the sentence advises
        (folder / name).unlink()
    ends_like(folder, alone)


class Bomb:
    """Unpickled without care, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "executed")


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def hostile(marker: Path) -> list[bytes]:
    """Files that run code when unpickled, and files that hold something else."""
    bomb = Bomb(marker)
    whole = {"network": "", "model": {"conv1.weight": bomb}, "iteration": 3}
    return [pickle.dumps(bomb, 2), saved(bomb), saved(whole), b"", b"PK", saved([1, 2])]


def sealed(content: bytes) -> bytes:
    """With the digest that a checkpoint begins with; anyone can compute it."""
    return hashlib.sha256(content).digest() + content


def test_bomb_goes_off_where_nobody_is_careful(tmp_path):
    """Otherwise the two tests below would prove nothing."""
    torch.load(io.BytesIO(saved(Bomb(tmp_path / "marker"))), weights_only=False)
    assert (tmp_path / "marker").exists()


def test_hostile_checkpoint_is_not_executed(tmp_path, halfway, alone):
    marker = tmp_path / "marker"
    for content in [*hostile(marker), sealed(saved({"network": 1}))]:
        for evil in (content, sealed(content)):
            files = dict.fromkeys(CHECKPOINTS, evil)
            folder = restore(halfway, tmp_path / "run", **files)
            result = Sitting(folder).end()
            refused(result, str(folder), "heckpoint")
            assert not marker.exists()
    folder = restore(halfway, folder, **{"checkpoint.pt": sealed(saved(Bomb(marker)))})
    ends_like(folder, alone)  # from the one before
    assert not marker.exists()


def test_hostile_weights_are_not_executed(tmp_path, left_alone):
    folder = tmp_path / "run"
    shutil.copytree(left_alone[0], folder)
    marker = tmp_path / "marker"
    for content in hostile(marker):
        (folder / "weights.pt").write_bytes(content)
        told = r"weights\.pt (is damaged|holds Python objects|holds no state_dict)"
        with pytest.raises(RuntimeError, match=told):
            load_weights(folder / "weights.pt")
        refused(Sitting(folder).end(), str(folder / "weights.pt"))
        assert not marker.exists()


# --- two processes --------------------------------------------------------------------


def test_second_process_is_kept_out(tmp_path, alone):
    folder = tmp_path / "run"
    first = Sitting(folder, *ALWAYS)
    wait_for(lambda: rows(folder) >= 2)
    second = Sitting(folder).end()
    assert first.running
    refused(second, f"Another process is training in {folder}", "or choose another")
    first.signal(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    ends_like(folder, alone)  # the dead process left no lock behind


# --- the loss -------------------------------------------------------------------------


@pytest.mark.parametrize("lr", ["1e38", "1e12", "1e6"])
def test_loss_that_explodes_names_the_last_good_checkpoint(tmp_path, lr):
    """The rate is sane up to the first row of the history, and then it is not."""
    folder = tmp_path / "run"
    warm = shlex.split(f"--lr {lr} --warmup-lr 0.01 --warmup-error 1.1")
    result = Sitting(folder, *ALWAYS, *warm).end()
    kept = state((folder / "checkpoint.pt").read_bytes())
    words = (f"The checkpoint of iteration {kept['iteration']} is kept", "Lower the")
    refused(result, "at iteration", *words)
    assert kept["iteration"] >= 3
    values = [v for v in kept["model"].values() if v.is_floating_point()]
    assert all(value.isfinite().all() for value in values), kept["iteration"]


# --- over and over --------------------------------------------------------------------


def test_same_seed_gives_the_same_bits(tmp_path, left_alone, alone):
    assert record(left_alone[0].with_name("again")) == alone
    assert Sitting(tmp_path / "other", "--seed", "1").end().code == 0
    weights, history = record(tmp_path / "other")
    assert weights != alone[0] and history != alone[1]


def resident() -> float:
    """The memory that this process holds, in MB."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize() / 2**20


def weigh_at_every_row() -> None:
    """Print the memory that is in use; what is free goes back to the system first.

    The engine keeps freed blocks for speed, and a leak would fill them unseen.
    """
    sys.modules["resnet_lib.fit"].keeping_freed_memory = contextlib.nullcontext
    trim, append = ctypes.CDLL(None).malloc_trim, checkpoints.RunFolder.append

    def weigh(folder, row):
        trim(0)
        print(f"\nholds {resident():.2f} MB")
        append(folder, row)

    checkpoints.RunFolder.append = weigh


def test_memory_stays_flat(tmp_path):
    """The last half against the quarter before it."""
    iterations = 2_000 if KILLS >= FULL else 200
    options = shlex.split(f"--iterations {iterations} --checkpoint-seconds 0.2")
    result = Sitting(tmp_path / "run", *options, before=weigh_at_every_row).end()
    assert result.code == 0, result
    held = [float(mb) for mb in re.findall(r"holds ([\d.]+) MB", result.out)]
    assert len(held) == math.ceil(iterations / 3)
    half = len(held) // 2
    assert max(held[half:]) - max(held[half // 2 : half]) < 2, held
