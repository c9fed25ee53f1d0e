import logging

import lorakit  # noqa: F401 - hides what bitsandbytes says of kernels

LOGGER = logging.getLogger("bitsandbytes.backends.cpu.ops")


def test_a_package_that_bitsandbytes_can_do_without_is_not_mentioned(caplog):
    with caplog.at_level("WARNING", LOGGER.name):
        LOGGER.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "none")
        LOGGER.warning("Something else")
    assert caplog.messages == ["Something else"]
