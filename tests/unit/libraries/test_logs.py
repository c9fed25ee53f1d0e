import logging
import warnings

import pytest

import lorakit  # noqa: F401 - hides what bitsandbytes says of kernels
from lorakit.libraries.logs import muting_libraries

LOGGER = logging.getLogger("bitsandbytes.backends.cpu.ops")


def test_a_package_that_bitsandbytes_can_do_without_is_not_mentioned(caplog):
    with caplog.at_level("WARNING", LOGGER.name):
        LOGGER.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "none")
        LOGGER.warning("Something else")
    assert caplog.messages == ["Something else"]


def test_muted_libraries_log_errors_only_and_get_their_levels_back():
    logger = logging.getLogger("lorakit-test-library")
    logger.setLevel(logging.INFO)
    with pytest.raises(RuntimeError), muting_libraries(logger.name):
        warnings.warn("not shown", stacklevel=1)
        assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
        raise RuntimeError
    assert logger.level == logging.INFO
