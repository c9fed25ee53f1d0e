"""Whether other users of a machine could have written a file that is about to be run.

A compiled library and a pickled model run with the rights of whoever opens them, so both are read
only from places where nobody else may write or put another file under the same name.
"""

import os
import stat
from pathlib import Path


def is_private(path: Path) -> bool:
    """Return whether only this user, or root, can change what lies at `path`.

    The file or directory itself has to belong to this user, with no write permission for others.
    Every directory above it has to belong to this user or root, and let nobody else rename what is
    in it. Systems without user ids (Windows) give each user a profile that others cannot write to.

    Args:
        path: A file or directory that exists.
    """
    if not hasattr(os, "getuid"):
        return True
    user = os.getuid()
    real = path.resolve()
    found = os.lstat(real)
    if found.st_uid != user or _others_may_write(found):
        return False
    for directory in real.parents:
        found = os.lstat(directory)
        is_sticky = bool(found.st_mode & stat.S_ISVTX)  # as /tmp: renaming is for the owner
        if found.st_uid not in (0, user) or (_others_may_write(found) and not is_sticky):
            return False
    return True


def _others_may_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_group_of_one(found.st_gid)


def _is_group_of_one(group_id: int) -> bool:
    """Return whether a group is the one that many systems give each user, of the same name."""
    import grp
    import pwd

    if group_id == 0:
        return True
    try:
        group, user = grp.getgrgid(group_id), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
