"""The queue of a folder of runs: by default one run at a time.

The queue is files, and whoever adds a job or sees one end starts the next. So it goes on when no
studio is open, and two studios never start the same job.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lorakit.errors import ConfigError, LorakitError, OutputExistsError
from lorakit.files.disks import reporting_disk_errors
from lorakit.files.json_files import read_json_object
from lorakit.recipes.run_directory import RunDirectory
from lorakit.runs.jobs import Job, JobFolder
from lorakit.runs.paths import STATE_FOLDER
from lorakit.runs.process import start_supervisor

_WAIT_S = 10.0
MOST_AT_ONCE = 64


class RunQueue:
    """The jobs of a folder that wait or run."""

    def __init__(self, root: Path):
        """Name the queue of a folder; nothing is created."""
        self.root = root
        self.jobs = JobFolder(root)
        self._settings = root / STATE_FOLDER / "queue.json"

    @property
    def at_once(self) -> int:
        """Number of jobs that may run at the same time."""
        try:
            number = read_json_object(self._settings).get("at_once")
        except ValueError:
            return 1
        return number if isinstance(number, int) and 1 <= number <= MOST_AT_ONCE else 1

    def add_resume(self, relative: str) -> Job:
        """Add the resumption of a run from its newest complete checkpoint.

        Args:
            relative: Path of the run below the folder.
        """
        recipe = RunDirectory.open(self.root / relative).recipe_file
        return self.add(["train", str(recipe), "--resume"], relative, is_new=False)

    def add(
        self,
        words: Sequence[str],
        output: str,
        *,
        about: Mapping[str, str] | None = None,
        is_new: bool = True,
    ) -> Job:
        """Add a command of `lorakit`; it starts at once if no other runs.

        Args:
            words: The command without "lorakit"; its paths are seen from the folder.
            output: Run directory that it writes, below the folder.
            about: "task" and "model", to be shown before the run directory is there.
            is_new: Whether nothing may be at `output` yet.

        Raises:
            ConfigError: `output` leads out of the folder.
            OutputExistsError: There is a run at `output` already, or one waits to be written there.
            DiskError: The folder is not writable.
        """
        output = self.require_inside(output)
        if is_new:
            RunDirectory.refuse_occupied(self.root / output)
        with self._lock_queue():
            other = self.jobs.of(output)
            if other is not None and other.state in ("queued", "running"):
                raise OutputExistsError(
                    f"Cannot write to output {output}: job {other.number} in the queue writes "
                    "there. Wait for it or remove it, or set another `output`."
                )
            job = self.jobs.create(words, output, self.root, about or {})
            self._start_waiting()
        return self.jobs.get(job.number)

    def start_waiting(self) -> list[Job]:
        """Start the jobs that wait, as far as there is room; return those that were started."""
        with self._lock_queue():
            return self._start_waiting()

    def cancel(self, number: int) -> None:
        """Remove a job that waits, or one that has ended, from the list.

        Raises:
            ConfigError: It is running.
            MissingFileError: There is no such job.
        """
        with self._lock_queue():
            job = self.jobs.get(number)
            if job.state == "running":
                raise ConfigError(
                    f"Cannot remove {job.output!r} from the queue: it is running. Stop it first."
                )
            shutil.rmtree(job.folder)

    def _start_waiting(self) -> list[Job]:
        jobs = self.jobs.all()
        room = self.at_once - sum(job.state == "running" for job in jobs)
        started = [job for job in jobs if job.state == "queued"][: max(room, 0)]
        for job in started:
            start_supervisor(job, self.root)
        return started

    def require_inside(self, output: str) -> str:
        """Return a run directory as a path below the folder without dots.

        Raises:
            ConfigError: It leads out of the folder, is the folder itself, or is hidden.
        """
        top = self.root.resolve()
        place = (top / output).resolve()
        if not place.is_relative_to(top) or place == top or not output.isprintable():
            raise ConfigError(
                f"output: got {output!r}, expected a path below {self.root}. Choose a name such as "
                "runs/first."
            )
        relative = place.relative_to(top)
        if any(part.startswith(".") for part in relative.parts):
            raise ConfigError(
                f"output: got {output!r}, expected names that do not begin with a dot, because "
                "those are hidden. Choose another name."
            )
        return relative.as_posix()

    @contextmanager
    def _lock_queue(self) -> Iterator[None]:
        place = self.root / STATE_FOLDER
        with reporting_disk_errors(place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(place / "queue.lock", timeout=_WAIT_S)
            try:
                lock.acquire()
            except Timeout:
                raise LorakitError(
                    f"The queue of {self.root} is in use by another process for {_WAIT_S:.0f} s, "
                    "expected less than one. Try again; end other studios of this folder if it "
                    "stays so."
                ) from None
            try:
                yield
            finally:
                lock.release()
