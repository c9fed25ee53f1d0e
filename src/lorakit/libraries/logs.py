"""Filters for the logs of other libraries."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def muting_loggers(*names: str, below: int = logging.ERROR) -> Iterator[None]:
    """Inside the block, drop the records of loggers below a level."""
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
    """Inside the block, drop all warnings, and the records of loggers below a level."""
    with muting_loggers(*names, below=below), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def logging_errors_only() -> Iterator[None]:
    """Inside the block, let transformers log only errors about models."""
    logger = logging.getLogger("transformers.modeling_utils")
    # A filter rather than a level: at some levels transformers runs and reports more checks.
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def hide_missing_kernels() -> None:
    """Hide bitsandbytes' warning that the optional package `kernels` is missing.

    On processors with bfloat16 instructions bitsandbytes looks for it when imported, also by
    transformers' Trainer.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_about_kernels)


def _is_not_about_kernels(record: logging.LogRecord) -> bool:
    return "kernels-community" not in record.getMessage()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
