"""API keys: where they come from, and comparing them in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import ConfigError, MissingFileError
from lorakit.serving.refusals import RequestError

API_KEY_VARIABLE, ADMIN_KEY_VARIABLE = "LORAKIT_API_KEY", "LORAKIT_ADMIN_KEY"
"""Environment variables with keys, separated by spaces or commas."""

ANONYMOUS = "anonymous"
"""Who calls a server without keys, in the log."""

_SHORTEST = 8


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: The first characters of the key's hash, for logs and limits; never the key.
        is_admin: Whether the caller may load and unload adapters.
    """

    name: str = ANONYMOUS
    is_admin: bool = False


class ApiKeys:
    """The keys that a server accepts; only their hashes are kept."""

    def __init__(self, keys: Sequence[str] = (), admin_keys: Sequence[str] = ()):
        """Take the keys.

        Args:
            keys: Keys for all calls but those of administrators; none lets everybody call.
            admin_keys: Keys for all calls; none refuses the calls of administrators.
        """
        self._keys = [_digest(key) for key in keys]
        self._admin_keys = [_digest(key) for key in admin_keys]

    @property
    def are_required(self) -> bool:
        """Whether a caller needs a key."""
        return bool(self._keys)

    def caller(self, authorization: str | None) -> Caller:
        """Return who sent a request.

        Args:
            authorization: The Authorization header, "Bearer KEY".

        Raises:
            RequestError: A key is required, and it is missing or wrong.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" and key.strip() else None
        if given is not None:
            # Every key is compared, each in constant time.
            admin = [hmac.compare_digest(given, known) for known in self._admin_keys]
            plain = [hmac.compare_digest(given, known) for known in self._keys]
            if any(admin) or any(plain):
                return Caller(f"key-{given.hex()[:8]}", is_admin=any(admin))
        if not self.are_required:
            return Caller()
        got = "no key" if given is None else "a key that the server does not know"
        raise RequestError(
            f"The request is not allowed: got {got}, expected the header 'Authorization: Bearer "
            "KEY'. Ask whoever runs the server for a key.",
            status=401,
            code="invalid_api_key",
        )

    def require_admin(self, caller: Caller) -> None:
        """Refuse a caller who is no administrator.

        Raises:
            RequestError: The caller has no such key, or the server has none.
        """
        if caller.is_admin:
            return
        why = (
            "got a key that is not an administrator's. Use the administrator's key."
            if self._admin_keys
            else "the server was started without an administrator's key. Start it with "
            f"--admin-key-file or {ADMIN_KEY_VARIABLE}."
        )
        raise RequestError(
            f"Adapters cannot be loaded or unloaded: {why}",
            status=403,
            code="admin_key_required",
        )


def collect_keys(
    given: Sequence[str],
    file: Path | None,
    variable: str,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the keys of options, of a file with one key a line, and of an environment variable.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: A key is short, has spaces or is not ASCII; or the file holds none.
    """
    keys = [(key, "the command line") for key in given]
    if file is not None:
        found = [(key, str(file)) for key in _lines(file)]
        if not found:
            raise ConfigError(
                f"No key in {file}: got none, expected one a line. Write one into it."
            )
        keys += found
    environment = os.environ if environment is None else environment
    keys += [(key, variable) for key in environment.get(variable, "").replace(",", " ").split()]
    for key, where in keys:
        if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"A key from {where} cannot be used: got {len(key)} characters, expected at least "
                f"{_SHORTEST}, printable ASCII without spaces. `openssl rand -hex 24` makes one."
            )
    return [key for key, _ in keys]


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"No file of keys at {file}. Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the keys in {file}: {error}.") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
