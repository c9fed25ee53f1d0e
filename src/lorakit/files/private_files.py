"""Check whether other users of the machine could have written a file that is about to be run.

A compiled library and a pickled model run with the rights of the user who loads them, so both are
loaded only from places where no other user can write or replace files.
"""

import os
import stat
from pathlib import Path


def is_private(path: Path) -> bool:
    """Return whether only this user or root can change a file or directory.

    It must belong to this user and not be writable for others. Every directory above it must belong
    to this user or root, and let no other user rename its contents. On systems without user ids
    (Windows) the user's profile is private anyway.

    Args:
        path: An existing file or directory.
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
        is_sticky = bool(found.st_mode & stat.S_ISVTX)  # like /tmp: only owners may rename
        if found.st_uid not in (0, user) or (_others_may_write(found) and not is_sticky):
            return False
    return True


def _others_may_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_group_of_one(found.st_gid)


def _is_group_of_one(group_id: int) -> bool:
    """Return whether a group is the user's private group, which many systems create."""
    import grp
    import pwd

    if group_id == 0:
        return True
    try:
        group, user = grp.getgrgid(group_id), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
