"""Commands that were started, or wait to be started, in a folder of runs; each is a few files.

`DIR/.lorakit/jobs/000007/` holds `job.json` (what to run), `process.json` (the process that runs
it), `log.txt` (what it printed) and `ended.json` (its exit code). Nothing else knows about a job,
so any process may look at it, also after the one that started it has ended.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.errors import MissingFileError
from lorakit.files.atomic import write_text
from lorakit.files.json_files import read_json_object
from lorakit.libraries.process_identity import is_same_process
from lorakit.runs.command import error_in
from lorakit.runs.paths import STATE_FOLDER, read_end

JobState = Literal["queued", "running", "finished", "failed", "interrupted"]

_LOG_TAIL_BYTES = 16_384
_SIGNALLED = (130, 143, 129)
"""Exit codes after Ctrl-C, SIGTERM and a closed terminal."""
_NUMBER = re.compile(r"\d{6,}")
_TRASHED = ".trashed"
"""Ending of the folder of a job whose run is in the trash; nobody lists it."""


@dataclass(frozen=True)
class Job:
    """A command of `lorakit`, and what became of it.

    Attributes:
        folder: Its directory.
        words: The command without "lorakit", such as ("train", "recipe.yaml").
        output: Run directory that it writes, as a path below the folder of runs.
        cwd: Directory in which it runs.
        about: What to show while there is no run directory, such as "task" and "model".
        started_s: Time at which it was started, or else was added.
        state: What it is doing.
        exit_code: Exit code, negative for a signal; None before the end, and if the supervisor was
            killed too.
        pid: Id of its process; None before it starts.
        identity: Identity of that process.
        ended_s: Time of its end, as far as that is known.
    """

    folder: Path
    words: tuple[str, ...]
    output: str
    cwd: Path
    about: Mapping[str, str]
    started_s: float
    state: JobState
    exit_code: int | None = None
    pid: int | None = None
    identity: str | None = None
    ended_s: float | None = None

    @property
    def number(self) -> int:
        """Number of the job; later ones have higher numbers."""
        return int(self.folder.name)

    @property
    def log_file(self) -> Path:
        """What the command has printed."""
        return self.folder / "log.txt"

    @property
    def was_killed(self) -> bool:
        """Whether the process ended without a chance to say anything."""
        return self.state == "interrupted" and (self.exit_code is None or self.exit_code < 0)

    def problem(self) -> str:
        """Return why the job failed, as the command line has said it."""
        try:
            end, _ = read_end(self.log_file, _LOG_TAIL_BYTES)
        except OSError:
            end = b""
        lines = end.decode("utf-8", errors="replace").splitlines()
        sentence = error_in("\n".join(lines))
        if sentence is not None:
            return sentence
        if self.was_killed:
            return "The process was killed, by a user or because memory ran out."
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{last} (exit code {self.exit_code})".strip()


class JobFolder:
    """The jobs of a folder of runs."""

    def __init__(self, root: Path):
        """Name the jobs below `root`; nothing is created."""
        self.root = root
        self.path = root / STATE_FOLDER / "jobs"
        self._ended: dict[Path, Job] = {}

    def all(self) -> list[Job]:
        """Return all jobs by number; one that is damaged is left out."""
        found = [self._read(self._folder(number)) for number in self._numbers()]
        jobs = [job for job in found if job is not None]
        self._ended = {job.folder: job for job in jobs if (job.folder / "ended.json").exists()}
        return jobs

    def by_output(self) -> dict[str, Job]:
        """Return the newest job of each run."""
        return {job.output: job for job in self.all()}

    def of(self, output: str) -> Job | None:
        """Return the newest job of a run, or None if the queue has never started it."""
        return self.by_output().get(output)

    def get(self, number: int) -> Job:
        """Return a job.

        Raises:
            MissingFileError: There is none with this number.
        """
        job = self._read(self._folder(number))
        if job is None:
            raise MissingFileError(
                f"No job {number} in {self.path}: it has been deleted. Reload the list of runs."
            )
        return job

    def create(self, words: Sequence[str], output: str, cwd: Path, about: Mapping[str, str]) -> Job:
        """Write a job that waits; the caller holds the queue's lock. See `RunQueue.add`."""
        self.path.mkdir(parents=True, exist_ok=True)
        folder = self._folder(max(self._numbers(_TRASHED), default=0) + 1)
        folder.mkdir()
        facts = {"words": list(words), "output": output, "cwd": str(cwd), "about": dict(about)}
        write_text(folder / "job.json", json.dumps(facts | {"created_s": time.time()}) + "\n")
        return self.get(int(folder.name))

    def hide(self, output: str) -> None:
        """List the jobs of a run no longer, which goes into the trash."""
        for job in self.all():
            if job.output == output:
                job.folder.rename(job.folder.with_suffix(_TRASHED))

    def show(self, output: str) -> None:
        """List the jobs of a run again, which has come back."""
        for folder in self.path.glob(f"*{_TRASHED}"):
            job = self._read(folder)
            if job is not None and job.output == output:
                folder.rename(folder.with_suffix(""))

    def delete_hidden(self) -> None:
        """Delete the jobs of all runs in the trash."""
        for folder in self.path.glob(f"*{_TRASHED}"):
            shutil.rmtree(folder)

    def _numbers(self, ending: str = "") -> list[int]:
        """Return the numbers of the jobs, also of those whose folders have an ending."""
        try:
            names = [entry.name.removesuffix(ending) for entry in self.path.iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def _folder(self, number: int) -> Path:
        return self.path / f"{number:06d}"

    def _read(self, folder: Path) -> Job | None:
        known = self._ended.get(folder)
        if known is not None and folder.is_dir():
            return known
        try:
            facts = read_json_object(folder / "job.json")
            process = _read_if_there(folder / "process.json")
            ended = _read_if_there(folder / "ended.json")
            return Job(
                folder=folder,
                words=tuple(map(str, facts["words"])),
                output=str(facts["output"]),
                cwd=Path(facts["cwd"]),
                about=dict(facts.get("about", {})),
                started_s=float(process.get("started_s", facts["created_s"])),
                state=_state(process, ended),
                exit_code=ended.get("exit_code"),
                pid=process.get("pid"),
                identity=process.get("identity"),
                ended_s=ended.get("ended_s"),
            )
        except (KeyError, TypeError, ValueError):
            return None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _state(process: Mapping[str, Any], ended: Mapping[str, Any]) -> JobState:
    if ended:
        code = ended.get("exit_code")
        if code == 0:
            return "finished"
        return "interrupted" if code is None or code < 0 or code in _SIGNALLED else "failed"
    if not process:
        return "queued"
    is_alive = is_same_process(int(process["pid"]), str(process["identity"]))
    return "running" if is_alive else "interrupted"
