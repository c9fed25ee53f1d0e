"""Which versions of adapters the model carries, and which of them leave when room is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lorakit.errors import AdapterMemoryError


@dataclass(eq=False)
class CarriedVersion:
    """One version of an adapter in the model.

    Attributes:
        name: The adapter for which it was loaded.
        carried_name: Its name in the model.
        content_hash: Its key; adapters of equal content share it.
        bytes: Memory that it takes.
        leases: Number of requests that use it.
    """

    name: str
    carried_name: str
    content_hash: str
    bytes: int
    leases: int = 0


class AdapterMemory:
    """Counts bytes and chooses who leaves: the least recently used, never one that is in use.

    It knows nothing of models and threads; its user holds a lock.
    """

    def __init__(self, limit_bytes: int | None):
        self.limit_bytes = limit_bytes
        self._versions: dict[str, CarriedVersion] = {}
        """By content hash; the least recently used first."""
        self._reserved_bytes = 0

    def __contains__(self, content_hash: object) -> bool:
        return content_hash in self._versions

    @property
    def bytes_in_use(self) -> int:
        """Bytes of all versions, and of those that are being added."""
        return self._reserved_bytes + sum(one.bytes for one in self._versions.values())

    def get(self, content_hash: str | None) -> CarriedVersion | None:
        """Return a version without counting this as a use."""
        return None if content_hash is None else self._versions.get(content_hash)

    def use(self, content_hash: str) -> CarriedVersion | None:
        """Return a version, which becomes the most recently used."""
        version = self._versions.pop(content_hash, None)
        if version is not None:
            self._versions[content_hash] = version
        return version

    def require_possible(self, name: str, needed_bytes: int, pinned: Collection[str]) -> None:
        """Refuse what does not fit even when nothing is in use.

        Args:
            name: The adapter, for the message.
            needed_bytes: Its bytes.
            pinned: Content hashes of versions that never leave.

        Raises:
            AdapterMemoryError: It is larger than the memory, or than what pins leave of it.
        """
        if self.limit_bytes is None:
            return
        if needed_bytes > self.limit_bytes:
            raise AdapterMemoryError(
                f"Adapter {name!r} does not fit into the memory for adapters: got "
                f"{needed_bytes:,} bytes, expected at most {self.limit_bytes:,}. Raise the limit "
                "(--adapter-memory), or use an adapter of a lower rank."
            )
        kept = sum(one.bytes for key, one in self._versions.items() if key in pinned)
        if needed_bytes + kept > self.limit_bytes:
            raise AdapterMemoryError(
                f"Adapter {name!r} does not fit into the memory for adapters: got "
                f"{needed_bytes:,} bytes, expected at most {self.limit_bytes - kept:,}, as pinned "
                f"adapters take {kept:,} of {self.limit_bytes:,}. Raise the limit "
                "(--adapter-memory), or pin fewer adapters."
            )

    def make_room(self, needed_bytes: int, pinned: Collection[str]) -> list[CarriedVersion] | None:
        """Reserve bytes, and take out the versions that have to leave for them.

        Returns: The versions that leave; None if too much is in use now, and nothing is changed.
        """
        leaving: list[CarriedVersion] = []
        if self.limit_bytes is not None:
            excess = self.bytes_in_use + needed_bytes - self.limit_bytes
            for key, version in self._versions.items():
                if excess <= 0:
                    break
                if not version.leases and key not in pinned:
                    leaving.append(version)
                    excess -= version.bytes
            if excess > 0:
                return None
        for version in leaving:
            del self._versions[version.content_hash]
        self._reserved_bytes += needed_bytes
        return leaving

    def add(self, version: CarriedVersion) -> None:
        """Turn reserved bytes into a version that is in the model."""
        self._reserved_bytes -= version.bytes
        self._versions[version.content_hash] = version

    def undo_room(self, needed_bytes: int, leaving: Sequence[CarriedVersion]) -> None:
        """Undo `make_room`.

        Args:
            needed_bytes: What was reserved.
            leaving: The versions that are still in the model; they return as the least recently
                used.
        """
        self._reserved_bytes -= needed_bytes
        self._versions = {**{one.content_hash: one for one in leaving}, **self._versions}

    def take_unknown(self, known: Collection[str]) -> list[CarriedVersion]:
        """Take out the unused versions that no adapter has any more.

        Args:
            known: Content hashes of all adapters.
        """
        gone = [v for key, v in self._versions.items() if not v.leases and key not in known]
        for version in gone:
            del self._versions[version.content_hash]
        return gone
