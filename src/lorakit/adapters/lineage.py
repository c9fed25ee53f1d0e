"""The lineage of an adapter: the base, the data and the adapters that it comes from."""

from __future__ import annotations

from pathlib import Path

from lorakit.adapters.peft_files.files import WEIGHTS_FILE
from lorakit.config import StrictConfig
from lorakit.files.content_digests import content_sha256, file_sha256


class DataSource(StrictConfig):
    """Data that an adapter was trained or validated on."""

    name: str
    """Name in the recipe: a path or a hub id."""

    sha256: str | None = None
    """SHA-256 of the file, or of the files in a folder; None for data of the hub."""


class Ancestor(StrictConfig):
    """An adapter that another one was trained on from."""

    name: str
    """Path or hub id in the recipe."""

    sha256: str
    """SHA-256 of its adapter_model.safetensors."""

    data: tuple[DataSource, ...] = ()
    """Data that it was trained on, as far as it is recorded."""


class Lineage(StrictConfig):
    """What an adapter was made from; a part of `lorakit.json`."""

    base_digest: str | None = None
    """Digest of the base's weights, see `weights_digest`; None if it is not known."""

    data: tuple[DataSource, ...] = ()
    """Data of the run that trained it."""

    parents: tuple[Ancestor, ...] = ()
    """The adapter that it was trained on from, then that one's parent, and so on."""

    def add_parent(self, name: str, sha256: str) -> tuple[Ancestor, ...]:
        """Return the parents of an adapter that is trained on from the one with this lineage.

        Args:
            name: Name of the one with this lineage.
            sha256: SHA-256 of its weights.
        """
        return (Ancestor(name=name, sha256=sha256, data=self.data), *self.parents)


def adapter_sha256(directory: Path) -> str:
    """Return the SHA-256 of the tensors file of an adapter."""
    return file_sha256(directory / WEIGHTS_FILE)


def data_source(name: str) -> DataSource:
    """Return a source of data with its digest, if it is on this machine."""
    path = Path(name).expanduser()
    return DataSource(name=name, sha256=content_sha256(path) if path.exists() else None)
