"""The adapters of a server: known by name, loaded when asked for, evicted when unused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from lorakit.serving.store.values import AdapterCounts, KnownAdapter, Lease, StoreSettings

T = TypeVar("T")


class AdapterStore:
    """The adapters that requests can name, and those of them that one model carries.

    All methods may be called from any thread, also from an event loop: none waits for a load.
    """

    def __init__(
        self,
        model: nn.Module,
        base: str,
        *,
        run_between_steps: Callable[[Callable[[], Any]], Future[Any]],
        folder: Path | None = None,
        named: Mapping[str, Path] | None = None,
        root: Path | None = None,
        settings: StoreSettings | None = None,
    ):
        """Find the adapters; none is loaded.

        Args:
            model: A transformers model in evaluation mode.
            base: Name of the base alone, which no adapter may have.
            run_between_steps: Runs a function in the thread that owns the model, after those given
                to it before, with no `adapter_rows` block open.
            folder: A folder whose subfolders are adapters or run directories, named after them.
            named: Directories of further adapters, or of runs, by name.
            root: The directory below which all adapters that the server is asked to load must lie,
                those of the folder too; None is the folder.
            settings: Memory, pins and the like.

        Raises:
            ConfigError: A name is given twice, is the base's, or has control characters.
            MissingFileError: The folder, or the directory of a named adapter, does not exist.
        """

    def known(self) -> list[KnownAdapter]:
        """Return all adapters by name, with the problems of those that cannot be served."""
        raise NotImplementedError

    def find(self, name: str) -> KnownAdapter:
        """Return one adapter, as its files are now.

        Raises:
            AdapterNameError: There is none of that name; the message has the nearest names.
        """
        raise NotImplementedError

    def lease(self, name: str) -> Future[Lease]:
        """Return the right to use an adapter, once the model carries it.

        Its files are looked at now, so a new or rewritten adapter is the one that is used.
        Cancelling the future before it is done gives the lease back.

        The future raises:
            AdapterNameError: There is no adapter of that name; the message has the nearest names.
            AdapterMismatchError: It was made for another base; the message has the first key.
            AdapterFileError, MissingFileError, ConfigError: Its files are damaged, missing, outside
                the root, or make an adapter that does nothing or gives NaN.
            AdapterMemoryError: It is larger than all the memory, or everything in memory stayed in
                use for too long.
        """
        raise NotImplementedError

    async def leased(self, name: str) -> Lease:
        """Return what `lease` returns; if the caller is cancelled, no lease is left behind."""
        raise NotImplementedError

    def load(self, name: str, path: str) -> Future[KnownAdapter]:
        """Add an adapter under a name, and load it.

        Args:
            name: A name that no adapter has.
            path: Directory of an adapter or a run, below the root; relative paths begin there.

        The future raises what that of `lease` raises, and
            AdapterNameError: The name is taken, or not a valid one.
            ConfigError: The path does not lie below the root, or no root is set.
        """
        raise NotImplementedError

    def unload(self, name: str) -> None:
        """Forget an adapter; requests that use it finish.

        One of the watched folder is known again when its files change, or `load` names it.

        Raises:
            AdapterNameError: There is none of that name.
        """
        raise NotImplementedError

    def counts(self) -> dict[str, AdapterCounts]:
        """Return loads, evictions and refusals by name, of adapters that had any."""
        raise NotImplementedError

    @property
    def bytes_in_memory(self) -> int:
        """Memory of the adapters that the model carries."""
        raise NotImplementedError

    def start_watching(self) -> None:
        """Begin to scan the folder, and load what is pinned."""

    def stop_watching(self) -> None:
        """End scanning, and loading."""
