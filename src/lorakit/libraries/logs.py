"""What the libraries underneath log, and which of it a user should not have to read."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def muting_loggers(*names: str, below: int = logging.ERROR) -> Iterator[None]:
    """Drop what loggers say below a level; their own levels are put back on leaving."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(below)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def muting_libraries(*names: str, below: int = logging.ERROR) -> Iterator[None]:
    """Drop all warnings, and what the loggers of libraries say below a level."""
    with muting_loggers(*names, below=below), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def errors_alone() -> Iterator[None]:
    """Keep transformers from logging anything about a model but errors."""
    logger = logging.getLogger("transformers.modeling_utils")
    # A filter and no level: from some levels on transformers checks more, and reports that too.
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def hide_missing_kernels() -> None:
    """Hide what bitsandbytes says of a package that it can do without.

    On processors with bfloat16 instructions it looks for `kernels` while it is imported, which
    transformers' Trainer does too, and warns where that is not installed.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_of_kernels)


def _is_not_of_kernels(record: logging.LogRecord) -> bool:
    return "kernels-community" not in record.getMessage()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
