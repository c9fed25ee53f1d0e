"""All adapters that a server knows by name, as their files are."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Set
from difflib import get_close_matches
from pathlib import Path

from lorakit.errors import (
    AdapterFileError,
    AdapterNameError,
    ConfigError,
    LorakitError,
    MissingFileError,
    first_few,
)
from lorakit.files.json_files import has_control_characters, short_repr
from lorakit.inference.loaded import companions_of
from lorakit.serving.store.adapter_directory import (
    AdapterFacts,
    adapter_directory,
    files_key,
    may_be_written,
    read_facts,
)
from lorakit.serving.store.allowed_paths import AllowedPaths
from lorakit.serving.store.values import FilesKey

_MOST_NAME_CHARACTERS = 200
_UNREAD = AdapterFacts()


class Entry:
    """One adapter as its files were when they were last looked at; a change makes another entry.

    Attributes:
        name: Its name.
        path: The directory of its two files.
        companions: The directory of its tokenizer and `lorakit.json`.
        files_key: What its files were; empty if they could not be read.
        facts: What they say, as far as they could be read.
        failure: Why it cannot be served.
        is_final: Whether `failure` stays until a file changes; while files may be half-written it
            does not.
        content_hash: Hash of the content; None until it has been read.
        previous_hash: The hash of the entry before, until this one's is known.
    """

    def __init__(
        self, name: str, path: Path, files_key: FilesKey, previous_hash: str | None = None
    ):
        self.name = name
        self.path = path
        self.companions = path
        self.files_key = files_key
        self.facts = _UNREAD
        self.failure: LorakitError | None = None
        self.is_final = True
        self.content_hash: str | None = None
        self.previous_hash = previous_hash

    def fail(self, error: LorakitError) -> None:
        """Keep the reason why the adapter cannot be served."""
        self.failure = error
        self.is_final = not may_be_written(self.path)

    def raise_failure(self) -> None:
        """Raise the reason why the adapter cannot be served, if there is one that stays."""
        if self.failure is not None and self.is_final:
            # A new object, as each raise adds to an exception's traceback.
            raise type(self.failure)(*self.failure.args)


class Catalogue:
    """The adapters of a folder, and those that were named one by one.

    Its user holds a lock.
    """

    def __init__(
        self, base: str, folder: Path | None, named: Mapping[str, Path], paths: AllowedPaths
    ):
        """Check the names; adapters are known once they are looked up.

        Raises:
            ConfigError: A name is given twice or is not a valid one.
            MissingFileError: The folder or the directory of a named adapter does not exist.
        """
        self._base = base
        self._folder = None if folder is None else folder.absolute()
        self._named: dict[str, Path] = {}
        self._trusted = set(named)
        self._paths = paths
        self._entries: dict[str, Entry] = {}
        self._forgotten: dict[str, FilesKey] = {}
        self._warned: set[str] = set()
        self._hashes: frozenset[str] | None = None
        if self._folder is not None and not self._folder.is_dir():
            raise MissingFileError(
                f"There is no folder {folder}, expected one with a subfolder for each adapter. "
                "Create it, or name another."
            )
        for name, path in named.items():
            self._check_named(name, path)
            self._named[name] = path.absolute()

    def _check_named(self, name: str, path: Path) -> None:
        problem = self.name_problem(name)
        if problem is not None:
            raise ConfigError(f"Cannot name an adapter {short_repr(name)}: {problem}")
        if not path.is_dir():
            raise MissingFileError(
                f"There is no directory {path} of adapter {name!r}, expected an adapter or a run. "
                "Check the path."
            )
        child = self._in_folder(name)
        if child is not None and child.resolve() != path.resolve():
            raise ConfigError(
                f"Adapter name {name!r} is given twice: got {path} and {child}, expected one "
                "directory. Choose another name for the first, or rename the second."
            )

    def name_problem(self, name: str) -> str | None:
        """Return what is wrong with a name, or None."""
        if name == self._base:
            return "it is the name of the base, expected another one. Rename the adapter."
        if not name.strip() or len(name) > _MOST_NAME_CHARACTERS or has_control_characters(name):
            return (
                f"expected 1 to {_MOST_NAME_CHARACTERS} characters, none of them a control "
                "character. Rename the adapter."
            )
        return None

    @property
    def hashes(self) -> frozenset[str]:
        """Content hashes of all adapters; for a rewritten one that of before, until it is read."""
        if self._hashes is None:
            found = (entry.content_hash or entry.previous_hash for entry in self)
            self._hashes = frozenset(one for one in found if one is not None)
        return self._hashes

    def set_content(self, entry: Entry, content_hash: str) -> None:
        """Keep the hash of what has been read."""
        entry.content_hash = content_hash
        self._hashes = None

    def _put(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        self._hashes = None

    def _drop(self, name: str) -> None:
        if self._entries.pop(name, None) is not None:
            self._hashes = None

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def knows(self, name: str) -> bool:
        """Return whether there is an adapter of a name."""
        try:
            self.look_up(name)
        except AdapterNameError:
            return False
        return True

    def look_up(self, name: str) -> Entry:
        """Return an adapter as its files are now; entries with a problem are returned too.

        Raises:
            AdapterNameError: There is none of that name.
        """
        path = self._named.get(name) or self._in_folder(name)
        if path is None:
            self._drop(name)
            raise AdapterNameError(self._unknown(name))
        entry = self._entries.get(name)
        directory = adapter_directory(path) or path
        try:
            key = files_key(directory)
        except OSError:  # it is gone, or just being replaced
            key = ()
        is_same = entry is not None and (entry.path, entry.files_key) == (directory, key)
        if entry is not None and is_same:
            if entry.failure is not None and not entry.is_final:
                self._examine(entry)
            return entry
        if self._forgotten.get(name) == key:
            raise AdapterNameError(self._unknown(name))
        self._forgotten.pop(name, None)
        before = None if entry is None else entry.content_hash or entry.previous_hash
        made = Entry(name, directory, key, before)
        self._put(made)
        self._examine(made)
        return made

    def _examine(self, entry: Entry) -> None:
        """Read the headers of an adapter's files."""
        entry.failure, entry.is_final = None, True
        try:
            problem = self.name_problem(entry.name)
            if problem is not None:
                raise ConfigError(f"Cannot serve adapter {short_repr(entry.name)}: {problem}")
            entry.companions = companions_of(entry.path)
            if entry.name not in self._trusted:
                self._require_allowed(entry)
            entry.facts = read_facts(entry.path)
        except (AdapterFileError, ConfigError, MissingFileError) as error:
            entry.fail(error)

    def _require_allowed(self, entry: Entry) -> None:
        """Refuse an adapter one of whose files lies outside the root.

        Raises:
            ConfigError: One does.
        """
        for directory in {entry.path, entry.companions}:
            self._paths.require(directory)
            for name, *_ in entry.files_key:
                if (directory / name).is_symlink():
                    self._paths.require(directory / name)

    def _in_folder(self, name: str) -> Path | None:
        """Return the subfolder of that name, if it holds an adapter."""
        if self._folder is None or name.startswith(".") or not name:
            return None
        if "\0" in name or os.sep in name or (os.altsep and os.altsep in name):
            return None
        child = self._folder / name
        return child if adapter_directory(child) is not None else None

    def _unknown(self, name: str) -> str:
        known = sorted(self._entries)
        near = get_close_matches(name[:_MOST_NAME_CHARACTERS], known, n=3, cutoff=0.5)
        expected = first_few(map(repr, near or known), 3) or "none, as the server has no adapters"
        return f"There is no adapter {short_repr(name)}, expected {expected}."

    # ---- changes ----

    def names_now(self) -> set[str]:
        """Return the names that there are now; needs no lock, and lists the folder."""
        return {*self._named} | self._names_in_folder()

    def keep_only(self, names: Set[str]) -> None:
        """Remove the adapters that have none of these names."""
        for name in self._entries.keys() - names:
            self._drop(name)

    def _names_in_folder(self) -> set[str]:
        if self._folder is None:
            return set()
        try:
            with os.scandir(self._folder) as children:
                found = {child.name for child in children if not child.name.startswith(".")}
        except FileNotFoundError:
            return set()
        names = {name for name in found if self._in_folder(name) is not None}
        for name in sorted(names & self._named.keys() - self._warned):
            if self._named[name].resolve() != (self._folder / name).resolve():
                self._warned.add(name)
                logging.getLogger("lorakit.serving").warning(
                    "The folder has an adapter %r, but that name is %s.", name, self._named[name]
                )
        return names

    def add_named(self, name: str, path: Path) -> None:
        """Add an adapter under a name.

        Raises:
            AdapterNameError: The name is taken, or not a valid one.
        """
        problem = self.name_problem(name)
        if problem is not None:
            raise AdapterNameError(f"Cannot name an adapter {short_repr(name)}: {problem}")
        if self.knows(name):
            raise AdapterNameError(
                f"There is an adapter {name!r} already, expected a new name. Unload it first."
            )
        self._forgotten.pop(name, None)
        self._named[name] = path

    def take_changes(self, other: Catalogue) -> None:
        """Name and forget what another catalogue of the same places has named and forgotten."""
        self._named = dict(other._named)
        self._trusted = set(other._trusted)
        self._forgotten = dict(other._forgotten)
        self.keep_only(self.names_now() - self._forgotten.keys())

    def forget(self, name: str) -> None:
        """Remove an adapter; one of the folder is known again when its files change.

        Raises:
            AdapterNameError: There is none of that name.
        """
        entry = self.look_up(name)
        self._drop(name)
        self._named.pop(name, None)
        self._trusted.discard(name)
        if self._in_folder(name) is not None:
            self._forgotten[name] = entry.files_key
