"""The folder of a training: what a kill must not lose, and who may write to it."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from resnet_lib.distributed import Ranks
from resnet_lib.identity import data_digest, describe, network_digest
from resnet_lib.paths import has_locks, rename
from resnet_lib.runs import (
    Run,
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
from resnet_lib.training import Training

__all__ = ["RunFolder", "network_name"]


def _on_disk(method: Callable) -> Callable:
    """Rank 0 alone touches the disk; its answer and its errors reach every rank."""

    @functools.wraps(method)
    def on_zero(folder: "RunFolder", *arguments):
        try:
            return folder.ranks.on_rank_zero(lambda: method(folder, *arguments))
        except OSError as error:  # "No space left on device" names no folder
            raise OSError(
                f"The run folder {folder.path} cannot be written: {error}. Choose "
                "another one, or mend this one: the same call goes on from what it "
                "holds."
            ) from error

    return on_zero


class RunFolder:
    """Keeps a training in a folder, so that a kill loses a minute at most.

    While it runs: recipe.json, environment.json, history.csv and two checkpoints, the
    newest and the one before it. At the end: weights.pt in place of the checkpoints.
    """

    def __init__(
        self, path: Path, state: Training, ranks: Ranks, snapshots: Sequence[int]
    ) -> None:
        self.path, self.state, self.ranks = path, state, ranks
        self.snapshots = set(snapshots)
        self.history = path / "history.csv"
        self.weights = path / "weights.pt"
        self.checkpoints = (path / "checkpoint.pt", path / "checkpoint.previous.pt")
        self.newest_is_damaged = False
        self.lock = FileLock(path / ".lock", timeout=0)

    # --- opening ---

    @property
    def threads(self) -> list[int]:
        """With how many threads the run was computed, from its first sitting on."""
        with contextlib.suppress(RuntimeError, OSError):  # `open` says what is damaged
            begun = read_json(self.path / "environment.json")
            sittings = [begun, *begun.get("resumed", [])]
            return [sitting["threads"] for sitting in sittings if "threads" in sitting]
        return []

    def open(self) -> bool:
        """Make the folder or go on with it; True if its run is finished already."""
        finished = self._open()
        if finished:
            self.close()  # if a kill came before it
        if self.ranks.size > 1:  # every rank goes on from where rank 0 stands
            sent = self.ranks.on_rank_zero(lambda: _to_bytes(self.state.state_dict()))
            if not self.ranks.first:
                self.state.load_state_dict(_from_bytes(sent))
        return finished

    @_on_disk
    def _open(self) -> bool:
        self.path.mkdir(parents=True, exist_ok=True)
        if not Run(self.path).finished:
            self._lock()
        # Asked again under the lock: another process may have finished it since.
        finished = Run(self.path).finished
        self._check_identity()
        if finished:
            self._load_finished()
        else:
            self._resume()
            self._note_machine()
            # Rows written after the checkpoint will be measured again.
            write_atomically(self.history, history_text(self.state.rows).encode())
        return finished

    def _load_finished(self) -> None:
        if not self.weights.exists():
            raise RuntimeError(
                f"The run in {self.path} is finished and keeps no weights, only its "
                "history. Choose another folder to train it anew."
            )
        weights = load_weights(self.weights)
        try:
            self.state.model.load_state_dict(weights)
        except RuntimeError:
            raise RuntimeError(
                f"{self.weights} holds the weights of another network. Restore it, or "
                "train the run anew in another folder."
            ) from None
        self.state.rows = read_history(self.history)
        self.state.iteration = self.state.rows[-1]["iteration"]

    def _lock(self) -> None:
        """Keep other processes out; the system lets go when this one dies."""
        if not has_locks(self.path / ".lock"):
            print(
                f"{self.path} lies on a drive without file locks: see to it that no "
                "other process trains there."
            )
            return
        try:
            self.lock.acquire()
        except Timeout:
            raise RuntimeError(
                f"Another process is training in {self.path}. Let it finish or stop "
                "it, or choose another folder."
            ) from None

    def release(self) -> None:
        self.lock.release()
        if self.state.at_end and self.ranks.first:
            _remove(self.path / ".lock")

    def _check_identity(self) -> None:
        """Write what this run is, or compare it with what the folder says."""
        state = self.state
        about = {
            "model": network_name(state.model),
            "network": describe(state.model),
            "network_id": network_digest(state.model),
            "data": state.data.name,
            "data_digest": data_digest(state.data),
            "recipe": dataclasses.asdict(state.recipe),
        }
        about = json.loads(json.dumps(about))  # tuples as lists, as in the file
        path = self.path / "recipe.json"
        if not path.exists():
            files = (self.history, self.weights, *self.checkpoints)
            if found := [file.name for file in files if file.exists()]:
                raise RuntimeError(
                    f"{self.path} holds {found[0]} and no recipe.json, so it is of "
                    "another program or has lost its record. Choose another folder."
                )
            # Last, since a folder with a recipe.json has to be whole after a kill.
            write_json(self.path / "environment.json", self._environment())
            write_json(path, about)
            return
        ours = about | about.pop("recipe")
        theirs = read_about(self.path)
        theirs |= theirs.pop("recipe")
        network = "of another network: other layers, hooks, code or frozen weights"
        told = {
            "network": network,
            "network_id": network,
            "data_digest": f"on other data of the name {state.data.name!r}: other "
            "pictures, labels, sizes or classes",
        }
        for key, value in ours.items():
            if theirs.get(key, value) != value:  # older runs say less
                other = told.get(key, f"with {key} = {theirs[key]!r}, not {value!r}")
                raise ValueError(
                    f"{self.path} holds a run {other}. Choose another folder, or go on "
                    "with what the run was begun with."
                )

    def _environment(self) -> dict:
        profile, size = self.state.profile, self.ranks.size
        processes = f", {size} processes" if size > 1 else ""
        return describe_environment(str(profile.device), f"{profile}{processes}")

    def _note_machine(self) -> None:
        """A run that goes on under other conditions says from where, and which."""
        path = self.path / "environment.json"
        recorded = read_json(path)
        known = dict(recorded)
        for change in recorded.get("resumed", []):
            known |= change
        now = self._environment()
        changed = {key: now[key] for key in now if now[key] != known.get(key)}
        if self.state.iteration and changed.keys() - {"started"}:
            changed = {"iteration": self.state.iteration, **changed}
            recorded["resumed"] = [*recorded.get("resumed", []), changed]
            write_json(path, recorded)

    # --- going on ---

    def _resume(self) -> None:
        state = self._newest_checkpoint()
        if state is None:
            return
        ranks = state.get("ranks", 1)  # runs from before there could be several
        if ranks != self.ranks.size:
            begun = "1 process" if ranks == 1 else f"{ranks} processes"
            raise ValueError(
                f"The run in {self.path} was begun with {begun}, not "
                f"{self.ranks.size}, and each takes its own share of a batch. Go on "
                f"with {begun}, or choose another folder."
            )
        try:
            self.state.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RuntimeError(
                f"The checkpoint in {self.path} is not one of this network and this "
                f"version of the library ({error!r}). Choose another folder, or delete "
                "it to start this run anew."
            ) from error

    def _newest_checkpoint(self) -> dict | None:
        """The newest whole checkpoint, or None where there is none at all."""
        damaged = []
        for path in filter(Path.exists, self.checkpoints):
            state = _read_checkpoint(path)
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

    @_on_disk
    def kept(self) -> str:
        state = self._newest_checkpoint()
        if state is None:
            return "There is no checkpoint from before."
        return f"The checkpoint of iteration {state['iteration']} is kept."

    # --- writing ---

    @_on_disk
    def append(self, row: dict) -> None:
        """A row of the history. The last one says that the run is finished, so the
        weights are there before it."""
        if self.state.at_end:
            write_atomically(self.weights, _to_bytes(self._state_dict()))
            # On the disk, too, before the checkpoints go.
            write_atomically(self.history, history_text(self.state.rows).encode())
            return
        with open(self.history, "a") as file:
            file.write(history_text([row], header=False))

    @_on_disk
    def save(self) -> None:
        """A checkpoint; the one before it is kept too."""
        content = _to_bytes(self.state.state_dict() | {"ranks": self.ranks.size})
        newest, previous = self.checkpoints
        # A damaged file must not take the place of the only whole one: a kill before
        # the new one is written would leave nothing.
        if newest.exists() and not self.newest_is_damaged:
            rename(newest, previous)
        # The digest tells a damaged file from a whole one before it is loaded.
        write_atomically(newest, hashlib.sha256(content).digest() + content)
        self.newest_is_damaged = False

    def snapshot(self) -> None:
        if self.state.iteration in self.snapshots:
            self._snapshot()

    @_on_disk
    def _snapshot(self) -> None:
        path = self.path / "snapshots" / f"iteration-{self.state.iteration:06d}.pt"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, _to_bytes(halved(self._state_dict())))

    def _state_dict(self) -> dict[str, Tensor]:
        """The weights in the default memory format, for any other program."""
        state = self.state.model.state_dict()
        return {name: w.detach().cpu().contiguous() for name, w in state.items()}

    @_on_disk
    def close(self) -> None:
        """Remove the checkpoints, and what a kill left of one (.part)."""
        for path in self.checkpoints:
            _remove(path)
            _remove(path.with_name(path.name + ".part"))


def _remove(path: Path) -> None:
    """On a read-only drive even an absent file cannot be unlinked."""
    if path.exists():
        path.unlink(missing_ok=True)


def _read_checkpoint(path: Path) -> dict | None:
    """What a checkpoint holds, or None if it is damaged."""
    whole = path.read_bytes()
    digest, content, state = whole[:32], whole[32:], None
    if hashlib.sha256(content).digest() == digest:
        # Anyone can compute a digest. A file that would run code is refused like a
        # damaged one; torch.load raises whatever its bytes lead to.
        with contextlib.suppress(Exception):
            state = _from_bytes(content)
    return state if isinstance(state, dict) else None


def network_name(model: nn.Module) -> str:
    name = getattr(model, "name", None)
    return name if isinstance(name, str) else type(model).__name__


def _to_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> object:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
