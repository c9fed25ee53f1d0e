"""Detect whether a launcher (torchrun, accelerate launch) started this command several times."""

import os


def is_launched_in_parallel() -> bool:
    """Return whether other processes run the same command for the same training."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Return whether this process is the one that prints."""
    return not is_launched_in_parallel() or os.environ.get("RANK", "0") == "0"


def should_print_error(error: BaseException) -> bool:
    """Return whether this process prints an error; exactly one process does."""
    if not is_launched_in_parallel():
        return True
    from lorakit.distributed.processes import process_count, should_report_error

    return is_first() if process_count() == 1 else should_report_error(error)
