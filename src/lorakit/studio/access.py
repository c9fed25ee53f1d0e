"""Who may see the studio: browsers by a link that works once or a password, programs by a key."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.files.atomic import write_text
from lorakit.runs.paths import STATE_FOLDER

COOKIE_DAYS = 30
_DAY_S = 86_400
_LEAST_CHARACTERS = 8


class Access:
    """Admits browsers, and recognizes those it has admitted.

    Attributes:
        cookie_name: Name of the cookie; browsers share cookies between all ports of a host.
    """

    def __init__(
        self,
        key: bytes,
        cookie_name: str,
        password: str | None = None,
        on_link_used: Callable[[str], None] | None = None,
    ):
        """Create the door of one studio.

        Args:
            key: Secret that signs cookies; the same key recognizes the cookies of an earlier
                process.
            cookie_name: Name of the cookie.
            password: Password that admits a browser instead of a link; None admits by link only.
            on_link_used: Called with the next token after a link has been used.
        """
        self.cookie_name = cookie_name
        # Whoever changes the password also ends the sessions that the old one has opened.
        self._key = hmac.digest(key, (password or "").encode(), "sha256")
        self._password = password
        self._on_link_used = on_link_used
        self._token = secrets.token_urlsafe(24)

    @property
    def needs_password(self) -> bool:
        """Whether a password admits, and no link."""
        return self._password is not None

    @property
    def token(self) -> str:
        """Secret of the link that has not been used yet."""
        return self._token

    @property
    def api_key(self) -> str:
        """Key with which other programs call the models; it ends with the password."""
        return f"lorakit-{self._sign('api key')[:40]}"

    def redeem(self, token: str) -> bool:
        """Return whether a link admits; it works once."""
        if self.needs_password or not _is_same(token, self._token):
            return False
        self._token = secrets.token_urlsafe(24)
        if self._on_link_used is not None:
            self._on_link_used(self._token)
        return True

    def is_password(self, text: str) -> bool:
        """Return whether a text is the password."""
        return self._password is not None and _is_same(text, self._password)

    def issue(self) -> str:
        """Return the value of a cookie for a browser that is admitted now."""
        until = f"{time.time() + COOKIE_DAYS * _DAY_S:.0f}"
        body = f"{until}.{secrets.token_hex(8)}"
        return f"{body}.{self._sign(body)}"

    def is_admitted(self, cookie: str | None) -> bool:
        """Return whether a cookie is one that was issued and is still valid."""
        body, _, signature = (cookie or "").rpartition(".")
        if not _is_same(signature, self._sign(body)):
            return False
        until = body.partition(".")[0]
        return until.isdigit() and time.time() < int(until)

    def _sign(self, body: str) -> str:
        return hmac.new(self._key, body.encode(errors="replace"), hashlib.sha256).hexdigest()


def _is_same(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def load_key(root: Path) -> bytes:
    """Return the key that signs the cookies of a folder's studios; create it the first time.

    It is kept, so that a page that is open goes on when the studio is started again.

    Args:
        root: Folder of runs.

    Raises:
        DiskError: The folder is not writable.
    """
    path = root / STATE_FOLDER / "studio-key"
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        key = b""
    if len(key) < 32:
        key = secrets.token_bytes(32)
        write_text(path.with_name(".gitignore"), "*\n")  # a secret belongs into no repository
        write_text(path, key.hex() + "\n")
        path.chmod(0o600)
    return key


def read_password(path: Path) -> str:
    """Return the password in the first line of a file.

    Raises:
        ConfigError: The file cannot be read, or its first line is no usable password.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"Cannot read the password in {path}: {reason}, expected a file with a password in its "
            "first line. Check --password-file."
        ) from None
    password = lines[0].strip() if lines else ""
    if len(password) < _LEAST_CHARACTERS:
        raise ConfigError(
            f"The password in {path} is too short: got {len(password)} characters, expected at "
            f"least {_LEAST_CHARACTERS}. Write a longer one into its first line."
        )
    return password
