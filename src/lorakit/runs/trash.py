"""The trash of a folder of runs: deleting moves a run there, from where it can come back."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from lorakit.errors import ConfigError, MissingFileError, OutputExistsError
from lorakit.files.atomic import write_text
from lorakit.files.disks import reporting_disk_errors
from lorakit.files.json_files import read_json_object
from lorakit.recipes.directory_lock import locking_directory
from lorakit.runs.jobs import JobFolder
from lorakit.runs.paths import STATE_FOLDER, resolve


@dataclass(frozen=True)
class TrashedRun:
    """A run in the trash.

    Attributes:
        number: Its number there.
        origin: Where it was, below the folder of runs.
        deleted_s: When it was deleted, in seconds since 1970.
        size_bytes: Size of its files.
    """

    number: int
    origin: str
    deleted_s: float
    size_bytes: int


class Trash:
    """Deleted runs of a folder, in `DIR/.lorakit/trash`."""

    def __init__(self, root: Path):
        """Name the trash of a folder; nothing is created."""
        self.root = root
        self.path = root / STATE_FOLDER / "trash"

    def delete(self, relative: str) -> int:
        """Move a run, or a damaged directory, into the trash; return its number there.

        Args:
            relative: Path of the run below the folder.

        Raises:
            ConfigError: The path leads out of the folder, or is the folder itself.
            OutputExistsError: A process writes to the run.
            MissingFileError: It is not there.
            DiskError: The disk is not writable.
        """
        source = resolve(self.root, relative)
        if source == self.root.resolve() or not source.is_dir():
            raise ConfigError(
                f"Cannot delete {relative!r}: it is not a run in {self.root}. Reload the list."
            )
        jobs = JobFolder(self.root)
        job = jobs.of(relative)
        if job is not None and job.state in ("queued", "running"):
            raise ConfigError(
                f"Cannot delete {relative!r}: it is {job.state}. Stop it, or remove it from the "
                "queue first."
            )
        with reporting_disk_errors(source), locking_directory(source):
            pass  # raises if a process writes to the run
        with reporting_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            number = max(self._numbers(), default=0) + 1
            place = self.path / f"{number:06d}"
            place.mkdir()
            facts = {"origin": quote(relative), "deleted_s": time.time()}
            write_text(place / "origin.json", json.dumps(facts) + "\n")
            os.rename(source, place / "run")
            jobs.hide(relative)
        return number

    def runs(self) -> list[TrashedRun]:
        """Return what is in the trash, the newest first."""
        found: list[TrashedRun] = []
        for number in sorted(self._numbers(), reverse=True):
            place = self.path / f"{number:06d}"
            try:
                facts = read_json_object(place / "origin.json")
            except ValueError:
                facts = {}
            if (place / "run").is_dir():
                origin = unquote(str(facts.get("origin", f"restored-{number}")))
                deleted_s = float(facts.get("deleted_s", 0.0))
                found.append(TrashedRun(number, origin, deleted_s, _size_bytes(place / "run")))
        return found

    def restore(self, number: int) -> str:
        """Move a run back to where it was; return its path below the folder.

        Raises:
            MissingFileError: It is not in the trash.
            OutputExistsError: Something else is there now.
        """
        found = next((run for run in self.runs() if run.number == number), None)
        if found is None:
            raise MissingFileError(f"No run {number} in the trash: reload the page.")
        target = self.root / found.origin
        if target.exists():
            raise OutputExistsError(
                f"Cannot restore {found.origin!r}: something else is there now. Rename that first."
            )
        with reporting_disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            place = self.path / f"{number:06d}"
            os.rename(place / "run", target)
            JobFolder(self.root).show(found.origin)
            shutil.rmtree(place)
        return found.origin

    def empty(self) -> None:
        """Delete everything in the trash for good.

        Raises:
            DiskError: The disk is not writable.
        """
        with reporting_disk_errors(self.path):
            if self.path.exists():
                shutil.rmtree(self.path)
            JobFolder(self.root).delete_hidden()

    def _numbers(self) -> list[int]:
        if not self.path.is_dir():
            return []
        return [int(entry.name) for entry in self.path.iterdir() if entry.name.isdecimal()]


def _size_bytes(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return total
