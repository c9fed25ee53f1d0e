"""Which directories a server may load adapters from: those below one root."""

from __future__ import annotations

from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.files.json_files import has_control_characters, short_repr


class AllowedPaths:
    """The one root below which adapters lie; symbolic links are followed before comparing."""

    def __init__(self, root: Path | None):
        self.root = None if root is None else root.resolve()

    def resolve(self, text: str) -> Path:
        """Return the directory that a client asks for.

        Args:
            text: An absolute path, or one relative to the root.

        Raises:
            ConfigError: There is no root, or the path does not lie below it.
        """
        if self.root is None:
            raise ConfigError(
                f"Cannot load an adapter from {short_repr(text)}: got no root directory, expected "
                "one that adapters must lie below. Start the server with a folder of adapters."
            )
        if not text or has_control_characters(text) or ".." in Path(text).parts:
            raise ConfigError(
                f"Cannot load an adapter from {short_repr(text)}: got an empty path, '..' or a "
                f"control character in it, expected a path below {self.root}. Name the directory "
                "itself."
            )
        path = self.root / text
        self.require(path)
        return path

    def require(self, path: Path) -> None:
        """Refuse a path that leads out of the root.

        Raises:
            ConfigError: It does.
        """
        if self.root is None:
            return
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):  # a circle of links
            resolved = None
        if resolved is None or not resolved.is_relative_to(self.root):
            # Where a link leads is not told to clients.
            raise ConfigError(
                f"Cannot load an adapter from {short_repr(str(path))}: got a path that leads out "
                f"of {self.root}, expected one below it. Move or copy the adapter there."
            )
