"""The fuzzers by name."""

from collections.abc import Callable

from tests.fuzz.adapters import AdapterFuzzer
from tests.fuzz.frame import Fuzzer

FUZZERS: dict[str, Callable[[], Fuzzer]] = {"adapters": AdapterFuzzer}
