"""The folder of a training: what a kill must not lose, and who may write to it."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from resnet_lib.runs import (
    describe_environment,
    halved,
    history_text,
    load_weights,
    read_about,
    read_history,
    read_json,
    write_atomically,
    write_json,
)

if TYPE_CHECKING:
    from resnet_lib.training import Training

__all__ = ["RunFolder", "from_bytes", "network_name", "to_bytes"]


def _led(method: Callable) -> Callable:
    """Rank 0 alone touches the disk; its answer and its errors reach every rank."""

    @functools.wraps(method)
    def led(folder: "RunFolder", *arguments):
        return folder.state.ranks.lead(lambda: method(folder, *arguments))

    return led


class RunFolder:
    """Keeps a training in a folder, so that a kill loses a minute at most.

    While it runs: recipe.json, environment.json, history.csv and two checkpoints, the
    newest and the one before it. At the end: weights.pt in place of the checkpoints.
    """

    def __init__(self, path: Path, state: "Training", snapshots: Sequence[int]) -> None:
        self.path, self.state, self.snapshots = path, state, set(snapshots)
        self.history = path / "history.csv"
        self.weights = path / "weights.pt"
        self.checkpoints = (path / "checkpoint.pt", path / "checkpoint.previous.pt")
        self.newest_is_damaged = False
        self.lock = FileLock(path / ".lock", timeout=0)

    def open(self) -> bool:
        """Make the folder or go on with it; True if its run is finished already."""
        try:
            finished = self._open()
            self._share()
        except BaseException:
            self.lock.release()
            raise
        return finished

    def _share(self) -> None:
        """Every rank goes on from where rank 0 stands."""
        state = self.state
        if state.ranks.size == 1:
            return
        content = state.ranks.lead(lambda: to_bytes(state.state_dict()))
        if not state.ranks.first:
            state.load_state_dict(from_bytes(content))

    @_led
    def _open(self) -> bool:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.weights.exists():
                self._hold()
            if self.weights.exists():  # looked at again: another may have ended it
                self._claim()
                self.state.model.load_state_dict(load_weights(self.weights))
                self._read_history()
                self._sweep()  # if it was killed before it could
                self.release()
                return True
            self._claim()
            self._resume()
            self._note_machine()
            # Rows written after the checkpoint will be measured again.
            write_atomically(self.history, history_text(self.state.rows).encode())
        except OSError as error:
            raise OSError(
                f"The run folder {self.path} cannot be written: {error}. "
                "Choose another one."
            ) from error
        return False

    def _read_history(self) -> None:
        try:
            self.state.rows = read_history(self.history)
            self.state.iteration = self.state.rows[-1]["iteration"]
        except (FileNotFoundError, IndexError, ValueError) as error:
            raise RuntimeError(
                f"{self.history} is damaged ({error}). Restore it, or choose another "
                "folder."
            ) from error

    def _hold(self) -> None:
        """Keep other processes out; the system lets go when this one dies."""
        try:
            # Some network drives have no locks; a run there is on its own.
            with contextlib.suppress(NotImplementedError):
                self.lock.acquire()
        except Timeout:
            raise RuntimeError(
                f"Another process is training in {self.path}. Let it finish or stop "
                "it, or choose another folder."
            ) from None

    def release(self) -> None:
        self.lock.release()
        if self.state.at_end and self.state.ranks.first:
            self.path.joinpath(".lock").unlink(missing_ok=True)

    def _claim(self) -> None:
        """Write what this run is, or compare it with what the folder says."""
        about = {
            "model": network_name(self.state.model),
            "data": self.state.data.name,
            "recipe": dataclasses.asdict(self.state.recipe),
        }
        about = json.loads(json.dumps(about))  # tuples as lists, as in the file
        path = self.path / "recipe.json"
        if not path.exists():
            # Last, since a folder with a recipe.json has to be whole after a kill.
            write_json(self.path / "environment.json", self._machine())
            write_json(path, about)
            return
        theirs = read_about(self.path)
        ours, theirs = ({**x, **x["recipe"], "recipe": 0} for x in (about, theirs))
        for key in ours:
            if theirs.get(key) != ours[key]:
                raise ValueError(
                    f"{self.path} holds a run with {key} = {theirs.get(key)!r}, not "
                    f"{ours[key]!r}. Choose another folder, or the same {key}."
                )

    def _machine(self) -> dict:
        profile, size = self.state.profile, self.state.ranks.size
        processes = f", {size} processes" if size > 1 else ""
        return describe_environment(profile.device.type, f"{profile}{processes}")

    def _note_machine(self) -> None:
        """A run that goes on under other conditions says from where, and which."""
        path = self.path / "environment.json"
        recorded = read_json(path)
        known = recorded | (recorded.get("resumed") or [{}])[-1]
        now = self._machine()
        changed = {key: now[key] for key in now if now[key] != known.get(key)}
        if self.state.iteration and changed.keys() - {"started"}:
            changed = {"iteration": self.state.iteration, **changed}
            recorded["resumed"] = [*recorded.get("resumed", []), changed]
            write_json(path, recorded)

    def _resume(self) -> None:
        state = self._newest_checkpoint()
        if state is None:
            return
        if state.get("network") != str(self.state.model):
            raise ValueError(
                f"The checkpoint in {self.path} is of another network. Choose another "
                "folder, or build the network that it was started with."
            )
        ranks = state.get("ranks", 1)  # runs from before there could be several
        if ranks != self.state.ranks.size:
            raise ValueError(
                f"The run in {self.path} was begun with {_processes(ranks)}, not "
                f"{self.state.ranks.size}, and each takes its own share of a batch. Go "
                f"on with {_processes(ranks)}, or choose another folder."
            )
        try:
            self.state.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise RuntimeError(
                f"The checkpoint in {self.path} is not one of this version of the "
                f"library ({error!r}). Choose another folder, or delete it to start "
                "this run anew."
            ) from error

    def _newest_checkpoint(self) -> dict | None:
        """The newest whole checkpoint, or None where there is none at all."""
        damaged = []
        for path in filter(Path.exists, self.checkpoints):
            state = _checkpoint(path)
            if state is not None:
                if damaged:
                    print(f"{damaged[0]} is damaged; going on from {path.name}.")
                    self.newest_is_damaged = True
                return state
            damaged.append(path)
        if damaged:
            raise RuntimeError(
                f"{damaged[0]} is damaged, and no older checkpoint is whole. Delete "
                f"{' and '.join(path.name for path in damaged)} to start this run anew."
            )
        return None

    @_led
    def kept(self) -> str:
        state = self._newest_checkpoint()
        if state is None:
            return "There is no checkpoint from before."
        return f"The checkpoint of iteration {state['iteration']} is kept."

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The system's "No space left on device" names neither folder nor remedy."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"The run folder {self.path} cannot be written: {error}. What was "
                "saved before is kept; the same call goes on from there."
            ) from error

    @_led
    def append(self, row: dict) -> None:
        with self._writing(), open(self.history, "a") as file:
            file.write(history_text([row], header=False))

    @_led
    def save(self) -> None:
        content = to_bytes(self.state.state_dict())
        newest, previous = self.checkpoints
        with self._writing():
            # A damaged file must not take the place of the only whole one: a kill
            # before the new one is written would leave nothing.
            if newest.exists() and not self.newest_is_damaged:
                newest.replace(previous)
            # The digest tells a damaged file from a whole one before it is loaded.
            write_atomically(newest, hashlib.sha256(content).digest() + content)
        self.newest_is_damaged = False

    def snapshot(self) -> None:
        if self.state.iteration in self.snapshots:
            self._snapshot()

    @_led
    def _snapshot(self) -> None:
        half = halved(_plain_state(self.state.model))
        path = self.path / "snapshots" / f"iteration-{self.state.iteration:06d}.pt"
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, to_bytes(half))

    @_led
    def close(self) -> None:
        content = to_bytes(_plain_state(self.state.model))
        with self._writing():
            write_atomically(self.weights, content)
            self._sweep()

    def _sweep(self) -> None:
        """A finished run keeps no checkpoints, nor what a kill left of one (.part)."""
        for path in self.path.glob("checkpoint*"):
            path.unlink(missing_ok=True)


def _checkpoint(path: Path) -> dict | None:
    """What a checkpoint holds, or None if it is damaged."""
    whole = path.read_bytes()
    digest, content = whole[:32], whole[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    # Anyone can compute a digest. A file that would run code is refused like a damaged
    # one; torch.load raises whatever its bytes lead to.
    with contextlib.suppress(Exception):
        state = from_bytes(content)
        return state if isinstance(state, dict) else None
    return None


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def network_name(model: nn.Module) -> str:
    return getattr(model, "name", type(model).__name__)


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A `state_dict` on the CPU in the default memory format, for any other program."""
    state = model.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def to_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> object:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
