"""The Hugging Face hub: recognizing ids, checking that it is reachable, and fetching files."""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from lorakit.errors import ConfigError, MissingFileError, first_line

_NAME = r"[A-Za-z0-9_][\w.-]*"
_TRIES, _TIMEOUT_S, _PAUSE_S = 2, 5.0, 1.0
_REMEMBERED_S = 60.0
"""How long the result of a check is remembered."""


class _Reachability:
    """Result and time of the last check of the hub."""

    problem: str | None = None
    checked_at_s: float | None = None


def is_hub_id(path: str | Path, *, is_base: bool = False) -> bool:
    """Return whether a path can only be a hub id: "owner/name" without a local folder "owner".

    Args:
        path: Path or hub id given by the user.
        is_base: Whether it names a base model; old ones, such as "gpt2", have no owner.
    """
    text = str(path)
    if os.path.exists(text):
        return False
    if is_base and re.fullmatch(_NAME, text):
        return True
    return not os.path.isdir(Path(text).parent) and bool(re.fullmatch(rf"{_NAME}/{_NAME}", text))


def fetch_from_hub(
    repository: str,
    files: Sequence[str],
    revision: str | None = None,
    *,
    what: str = "adapter",
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Fetch files of a repository and return their local directory.

    Args:
        repository: Hub id.
        files: Names or patterns of files; missing ones are skipped.
        revision: Branch, tag or commit; None takes the newest of the main branch.
        what: Kind of the repository for error messages: "adapter" or "base model".
        subfolder: Folder of the repository that holds the files.
        token: Hub token for a private repository; None takes the token of the login.

    Raises:
        MissingFileError: The hub is unreachable, or has no such repository.
        ConfigError: `subfolder` is not inside the repository.
    """
    from huggingface_hub import snapshot_download

    require_inside(subfolder)
    patterns = [str(PurePosixPath(subfolder or ".") / file) for file in files]
    try:
        with offline_if_unreachable():
            fetched = snapshot_download(
                repository, revision=revision, allow_patterns=patterns, token=token
            )
    except Exception as error:  # network, hub and cache errors have no common class
        at = f" at revision '{revision}'" if revision else ""
        raise MissingFileError(
            f"No {what} at '{repository}'{at}: it is not a local directory, and fetching it from "
            f"the Hugging Face hub failed ({fetch_failure_reason(error)}). Check the name and the "
            "network, or name a local directory."
        ) from error
    return Path(fetched) / (subfolder or "")


def require_inside(subfolder: str | None) -> None:
    """Require that a subfolder, if there is one, is inside its directory.

    Raises:
        ConfigError: The subfolder is absolute, empty or contains "..".
    """
    if subfolder is None:
        return
    parts = PurePosixPath(subfolder).parts
    if not parts or ".." in parts or subfolder.startswith("/") or "\0" in subfolder:
        raise ConfigError(
            f"Wrong subfolder: got {subfolder!r}, expected the path of a folder inside the "
            'directory or repository. Name one such as "checkpoint-100".'
        )


def fetch_failure_reason(error: Exception) -> str:
    """Return why fetching failed, as a phrase.

    Args:
        error: Error raised by the fetching library.
    """
    return first_line(error) if _Reachability.problem is None else _Reachability.problem


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Inside the block, fetch from the cache only if the hub is unreachable.

    The fetching libraries would try many times for every file. Here the hub is checked once.
    """
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        _Reachability.problem = None  # not checked
        yield
        return
    now = time.monotonic()
    checked_at_s = _Reachability.checked_at_s
    if checked_at_s is None or now - checked_at_s > _REMEMBERED_S:
        _Reachability.problem, _Reachability.checked_at_s = _connection_problem(), now
    if _Reachability.problem is None:
        yield
        return
    settings: list[Any] = [constants]
    if "datasets" in sys.modules:  # copies the setting when it is imported
        settings.append(sys.modules["datasets"].config)
    before = [one.HF_HUB_OFFLINE for one in settings]
    for one in settings:
        one.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for one, value in zip(settings, before, strict=True):
            one.HF_HUB_OFFLINE = value


def _connection_problem() -> str | None:
    """Return why the hub cannot be reached, or None if it sends any response."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    reason = ""
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE_S)
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
        except Exception as error:  # network errors have no common class
            reason = first_line(error)
        else:
            return None
    return f"{constants.ENDPOINT} cannot be reached: {reason}"
