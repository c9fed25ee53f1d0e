"""The lineage of an adapter: the base, the data and the adapters that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorakit.adapters.peft_files.files import WEIGHTS_FILE
from lorakit.config import StrictConfig
from lorakit.errors import AdapterMismatchError
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
    """Data of the run that trained it, or of all runs whose adapters are combined in it."""

    parents: tuple[Ancestor, ...] = ()
    """The adapter that it was trained on from, then that one's parent, and so on."""

    def add_parent(self, name: str, sha256: str) -> tuple[Ancestor, ...]:
        """Return the parents of an adapter that is trained on from the one with this lineage.

        Args:
            name: Name of the one with this lineage.
            sha256: SHA-256 of its weights.
        """
        return (Ancestor(name=name, sha256=sha256, data=self.data), *self.parents)


def common_lineage(
    lineages: Mapping[str, Lineage | None], base_model: str | None = None
) -> Lineage | None:
    """Return the lineage of a combination of adapters: the data and the parents of all.

    Args:
        lineages: Lineage of each adapter by name, None if it is not known.
        base_model: Base that the user names for all; then its digest is not known.

    Returns: None if none is known.

    Raises:
        AdapterMismatchError: The weights of the bases differ, and `base_model` is None.
    """
    known = {name: one for name, one in lineages.items() if one is not None}
    digests = {one.base_digest: name for name, one in known.items() if one.base_digest}
    if len(digests) > 1 and base_model is None:
        text = ", ".join(f"{digest[:12]} in {name}" for digest, name in digests.items())
        raise AdapterMismatchError(
            f"Cannot combine {', '.join(lineages)}: the digest of their base's weights is {text}, "
            "expected one. Combine adapters of one base, or name the base that the result is for "
            "(--base-model on the command line)."
        )
    if not known:
        return None
    return Lineage(
        base_digest=next(iter(digests)) if len(digests) == 1 and base_model is None else None,
        data=tuple(dict.fromkeys(source for one in known.values() for source in one.data)),
        parents=tuple(dict.fromkeys(parent for one in known.values() for parent in one.parents)),
    )


def adapter_sha256(directory: Path) -> str:
    """Return the SHA-256 of the tensors file of an adapter."""
    return file_sha256(directory / WEIGHTS_FILE)


def data_source(name: str) -> DataSource:
    """Return a source of data with its digest, if it is on this machine."""
    path = Path(name).expanduser()
    return DataSource(name=name, sha256=content_sha256(path) if path.exists() else None)
