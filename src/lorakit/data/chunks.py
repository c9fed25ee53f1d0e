"""Work through examples in chunks, those of large data in processes."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import CDLL
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from lorakit.data.progress import report_progress
from lorakit.data.reading.table import in_memory_dataset
from lorakit.errors import DataError

Batch = dict[str, list[Any]]
"""The values of each column of a chunk."""

Result = TypeVar("Result")

_LARGE_EXAMPLES, _LARGE_BYTES = 40_000, 200_000_000
"""Data of so many examples or bytes is large: it is worked through in processes and kept on disk.

Processes take about as long to start as tokenizing some thousand short examples."""
_CHUNK_EXAMPLES, _CHUNK_BYTES = 5000, 4_000_000
"""Most examples, and about how many bytes, that are Python objects at once in each process."""
_MOST_PROCESSES = 16
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""

_work: tuple[Dataset, Callable[[Batch, Sequence[int]], Any]] | None = None
"""What processes do; they get it by being forked, so that nothing is copied."""


def over_chunks(
    dataset: Dataset, function: Callable[[Batch, Sequence[int]], Result], what: str
) -> Iterator[Result]:
    """Yield what a function returns for each chunk of the examples, in their order.

    Large data is worked through on all processors, and `report_progress` tells how far it is.

    Args:
        dataset: The examples.
        function: Takes the columns of a chunk and the numbers of its examples. It keeps nothing
            between calls, as these may be in other processes; its result can be pickled.
        what: What is done, for the progress.

    Raises:
        DataError: A process was killed.
    """
    count, chunks = len(dataset), _chunks(dataset)
    if not is_large(dataset):
        for chunk in chunks:
            yield function(read_chunk(dataset, chunk), chunk)
        return
    processes = min(_processors(), _MOST_PROCESSES, len(chunks))
    report_progress(what, 0, count)
    if processes < 2:
        for chunk in chunks:
            yield function(read_chunk(dataset, chunk), chunk)
            report_progress(what, chunk.stop, count)
        return
    with _fork_workers(processes, dataset, function) as pool:
        try:
            for chunk, made in zip(chunks, pool.map(_work_on, chunks), strict=True):
                yield made
                report_progress(what, chunk.stop, count)
        except BrokenProcessPool as error:
            raise DataError(
                f"{what} failed: got a process that was killed, expected {processes} that finish; "
                "most often memory ran out. Close other programs, or allow fewer processors "
                "(taskset)."
            ) from error


def is_large(dataset: Dataset) -> bool:
    """Return whether data is worked through in processes, and the result kept on disk."""
    return len(dataset) >= _LARGE_EXAMPLES or dataset.data.nbytes >= _LARGE_BYTES


def digest_of(dataset: Dataset, *others: str) -> str:
    """Return a digest of the content and the types of examples, and of other texts."""
    digest = hashlib.sha256(repr((others, dataset.features)).encode())
    for chunk in _chunks(dataset):
        # A slice is copied: written as it is, it may be followed by bytes of what comes after it.
        table = arrow_chunk(dataset, chunk).take(pa.array(range(len(chunk))))
        written = pa.BufferOutputStream()
        plain = table.combine_chunks().replace_schema_metadata(None)
        with pa.ipc.new_stream(written, plain.schema) as writer:
            writer.write_table(plain)
        digest.update(written.getvalue())
    return digest.hexdigest()


def read_chunk(dataset: Dataset, numbers: range) -> Batch:
    """Return the values of consecutive examples, by column."""
    made: Any = in_memory_dataset(arrow_chunk(dataset, numbers), dataset.features)[:]
    return made


def arrow_chunk(dataset: Dataset, numbers: range) -> pa.Table:
    """Return consecutive examples as a table.

    A selection of examples is read at once; the datasets library reads them one by one, which takes
    longer than tokenizing short texts.
    """
    table: pa.Table = dataset.data.table
    selection = dataset._indices
    if selection is None:
        return table.slice(numbers.start, len(numbers))
    places = selection.column(0).slice(numbers.start, len(numbers)).to_numpy().astype(np.int64)
    if not len(places):
        return table.slice(0, 0)
    first, last = int(places.min()), int(places.max())
    return table.slice(first, last - first + 1).take(pa.array(places - first))


def column_values(dataset: Dataset, column: str) -> list[Any]:
    """Return all values of a column."""
    chosen = dataset.select_columns([column])
    return [value for chunk in _chunks(chosen) for value in read_chunk(chosen, chunk)[column]]


def _chunks(dataset: Dataset) -> list[range]:
    count = len(dataset)
    bytes_each = dataset.data.nbytes / max(dataset.data.num_rows, 1)
    size = min(max(int(_CHUNK_BYTES / max(bytes_each, 1)), 1), _CHUNK_EXAMPLES)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _processors() -> int:
    """Return the number of processors that this process may use; 1 where it cannot be forked."""
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else 1


@contextmanager
def _fork_workers(
    processes: int, dataset: Dataset, function: Callable[[Batch, Sequence[int]], Any]
) -> Iterator[ProcessPoolExecutor]:
    global _work
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of a forked process do not run
    _work = (dataset, function)
    pool = ProcessPoolExecutor(processes, get_context("fork"), _begin, (os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        _work = None
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _begin(parent: int) -> None:
    """Let the parent alone handle signals, and end when it ends."""
    CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _work_on(numbers: range) -> Any:
    if _work is None:
        raise RuntimeError("This process was not forked by over_chunks.")
    dataset, function = _work
    return function(read_chunk(dataset, numbers), numbers)
