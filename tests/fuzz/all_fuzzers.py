"""The fuzzers by name."""

from collections.abc import Callable

from tests.fuzz.adapters import AdapterFuzzer
from tests.fuzz.data import DataFuzzer
from tests.fuzz.frame import Fuzzer
from tests.fuzz.recipes import RecipeFuzzer

FUZZERS: dict[str, Callable[[], Fuzzer]] = {
    "adapters": AdapterFuzzer,
    "data": DataFuzzer,
    "recipes": RecipeFuzzer,
}
