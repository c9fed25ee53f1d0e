"""Detect whether a launcher (torchrun, accelerate launch) started this command several times."""

from lorakit.distributed.launcher import launched_processes, launched_rank
from lorakit.errors import ClusterError


def is_launched_in_parallel() -> bool:
    """Return whether other processes run the same command for the same training."""
    return launched_processes() > 1


def is_first() -> bool:
    """Return whether this process is the one that prints."""
    return launched_rank() == 0


def should_print_error(error: BaseException) -> bool:
    """Return whether this process prints an error.

    Exactly one process prints, except if they have not met: each then says why.
    """
    if not is_launched_in_parallel() or isinstance(error, ClusterError):
        return True
    from lorakit.distributed.processes import process_count, should_report_error

    return is_first() if process_count() == 1 else should_report_error(error)
