"""The Hugging Face hub: what is an id of it, whether it can be reached, and fetching files."""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from lorakit.errors import ConfigError, MissingFileError

_PART = r"[A-Za-z0-9_][\w.-]*"
_TRIES, _TIMEOUT_S, _PAUSE_S = 2, 5.0, 1.0
_REMEMBERED_S = 60.0
"""How long it is taken for granted whether the hub can be reached."""


class _Reachability:
    """What was found out about the hub, and when."""

    problem: str | None = None
    asked_at_s: float | None = None


def is_hub_id(path: str | Path, *, is_base: bool = False) -> bool:
    """Return whether a path can only be a hub id: "owner/name" where no folder "owner" lies.

    Args:
        path: What a user named.
        is_base: A base model is meant. Old ones, such as "gpt2", have no owner.
    """
    text = str(path)
    if os.path.exists(text):
        return False
    if is_base and re.fullmatch(_PART, text):
        return True
    return not os.path.isdir(Path(text).parent) and bool(re.fullmatch(rf"{_PART}/{_PART}", text))


def fetch_from_hub(
    repository: str,
    files: Sequence[str],
    revision: str | None = None,
    *,
    what: str = "adapter",
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the local directory that files of a repository were fetched to.

    Args:
        repository: Hub id.
        files: Names of the files, or patterns; those that are not there are left out.
        revision: Branch, tag or commit; None takes the newest of the main branch.
        what: What is fetched, for an error: "adapter" or "base model".
        subfolder: Folder of the repository that the files lie in.
        token: Of the hub, where the repository is private; None takes the one that was logged in
            with.

    Raises:
        MissingFileError: The hub cannot be reached, or has no such repository.
        ConfigError: `subfolder` leads out of the repository.
    """
    from huggingface_hub import snapshot_download

    inside = require_inside(subfolder)
    patterns = [str(PurePosixPath(inside or ".") / file) for file in files]
    try:
        with cache_alone_if_unreachable():
            fetched = snapshot_download(
                repository, revision=revision, allow_patterns=patterns, token=token
            )
    except Exception as error:  # network, hub and cache errors share no class
        at = f" at revision '{revision}'" if revision else ""
        raise MissingFileError(
            f"No {what} at '{repository}'{at}: it is no directory here, and asking the Hugging "
            f"Face hub for it failed ({why_fetching_failed(error)}). Check the name and the "
            "network, or name a local directory."
        ) from error
    return Path(fetched) / (inside or "")


def require_inside(subfolder: str | None) -> str | None:
    """Return the name of a folder below another one.

    Raises:
        ConfigError: It is none.
    """
    if subfolder is None:
        return None
    parts = PurePosixPath(subfolder).parts
    if not parts or ".." in parts or subfolder.startswith("/") or "\0" in subfolder:
        raise ConfigError(
            f"Wrong subfolder: got {subfolder!r}, expected the path of a folder inside the "
            'directory or repository. Name one such as "checkpoint-100".'
        )
    return subfolder


def why_fetching_failed(error: Exception) -> str:
    """Return the reason why something was not fetched, in a phrase.

    Args:
        error: What the library that fetches raised.
    """
    if _Reachability.problem is not None:
        return _Reachability.problem
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def cache_alone_if_unreachable() -> Iterator[None]:
    """Run a block that fetches from the hub; it looks into the cache alone where that is down.

    The libraries that fetch ask for every file with many retries. Here the hub is asked once.
    """
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        _Reachability.problem = None  # nobody asked it
        yield
        return
    now = time.monotonic()
    asked = _Reachability.asked_at_s
    if asked is None or now - asked > _REMEMBERED_S:
        _Reachability.problem, _Reachability.asked_at_s = _problem_of_hub(), now
    if _Reachability.problem is None:
        yield
        return
    settings: list[Any] = [constants]
    if "datasets" in sys.modules:  # it copies the setting when it is imported
        settings.append(sys.modules["datasets"].config)
    before = [one.HF_HUB_OFFLINE for one in settings]
    for one in settings:
        one.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for one, value in zip(settings, before, strict=True):
            one.HF_HUB_OFFLINE = value


def _problem_of_hub() -> str | None:
    """Return why the hub cannot be reached, or None where it answers, whatever it says."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    reason = ""
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE_S)
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
        except Exception as error:  # those of the network share no class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        else:
            return None
    return f"{constants.ENDPOINT} cannot be reached: {reason}"
