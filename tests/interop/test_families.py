"""Families of transformers: a sample is checked, and docs/adapters.md says what is recorded of all.

`python -m tests.families --write` checks all and records what it finds.
"""

import pytest
from tests.families.checks import CHECKS
from tests.families.exceptions import LEFT_OUT
from tests.families.models import FAMILIES
from tests.families.outcomes import recorded
from tests.families.page import PAGE, with_table
from tests.families.sweep import checked

# Remarks of PEFT and transformers about models that are not trained in practice.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = (
    "bert",
    "convbert",
    "esm",
    "falcon",
    "llama",
    "mamba",
    "mixtral",
    "mt5",
    "qwen2_moe",
    "resnet",
    "siglip",
    "whisper",
)
"""One of each kind: encoders, decoders, both, states, experts, convolutions, images, audio."""


@pytest.fixture(scope="module")
def outcomes():
    return recorded()


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_has_its_recorded_outcome(family, outcomes):
    found, expected = checked(family), outcomes[family]
    assert found.checks == expected.checks
    assert (found.model, found.modules) == (expected.model, expected.modules)


def test_no_family_is_wrong(outcomes):
    assert [family for family, found in outcomes.items() if found.is_wrong] == []


def test_every_refusal_says_why(outcomes):
    checks = [one for found in outcomes.values() for one in found.checks.values()]
    assert all(one.reason for one in checks if one.status != "right")


def test_every_family_that_can_be_made_is_recorded(outcomes):
    assert list(outcomes) == list(FAMILIES)
    assert len(outcomes) >= 150
    assert not outcomes.keys() & LEFT_OUT.keys()
    assert all(list(found.checks) == list(CHECKS) for found in outcomes.values())


def test_the_page_has_the_table_of_what_is_recorded(outcomes):
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text, outcomes) == text, "run python -m tests.families --write"
