"""What transformers logs while it loads and changes models."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


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


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
