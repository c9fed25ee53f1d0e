"""Models, features and operations, each done by PEFT and by lorakit: one test for each row."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from lorakit import set_adapter
from lorakit.errors import LorakitError
from oracle.operations import OPERATIONS, Case
from oracle.outcomes import LORAKIT, MADE, PEFT, ROWS, Row, cannot_be_made, has_file, outcome
from oracle.page import PAGE, with_table
from oracle.references import reference
from tolerances import largest_error

# PEFT's warnings about its own choices, which are what is compared here.
pytestmark = pytest.mark.filterwarnings("ignore")
MOVED = 1e-3
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    """Return one case for each kind and feature, made when first asked for."""
    made: dict[tuple[str, str], Case] = {}

    def get(row: Row) -> Case:
        key = row[:2]
        if key not in made:
            directory = tmp_path_factory.mktemp("-".join(key))
            made[key] = Case(*key, directory, peft_cannot=cannot_be_made(PEFT, *key))
        return made[key]

    yield get
    for case in made.values():
        shutil.rmtree(Path(case.directory), ignore_errors=True)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_row(row, case_of):
    case, operation = case_of(row), OPERATIONS[row.operation]
    ours, theirs = outcome(LORAKIT, row), outcome(PEFT, row)
    if theirs is not None and theirs.what == "refuses":
        with pytest.raises(Exception, match=re.escape(theirs.message)):
            case.fresh_theirs() if cannot_be_made(PEFT, *row[:2]) else operation.theirs(case)
    elif theirs is None and ours is not None and has_file(row):
        operation.theirs(case)
    if ours is not None and cannot_be_made(LORAKIT, *row[:2]):
        with pytest.raises(LorakitError, match=re.escape(ours.message)):
            case.fresh_ours()
        return
    if ours is not None:
        model = case.ours
        before = case.kind.output(model)
        with pytest.raises(LorakitError, match=re.escape(ours.message)):
            operation.on(case, model)
        set_adapter(model, "default")
        assert torch.equal(case.kind.output(model), before)
        return
    if not has_file(row):
        return
    got = operation.ours(case).detach()
    if theirs is None:
        assert largest_error(got, operation.theirs(case)) < TOLERANCE
        return
    expected = reference(case, row.operation)
    assert largest_error(got, expected) < TOLERANCE
    if theirs.what == "differs":
        assert largest_error(operation.theirs(case), expected) > MOVED


@pytest.mark.parametrize("key", dict.fromkeys(row[:2] for row in ROWS), ids="-".join)
def test_the_adapter_changes_the_outputs(key, case_of):
    case = case_of(Row(*key, "outputs"))
    if not cannot_be_made(LORAKIT, *key):
        adapted = case.kind.output(case.original_ours)
        assert largest_error(adapted, case.kind.output(case.original_base)) > MOVED


def test_every_outcome_is_that_of_a_row():
    for one in (*LORAKIT, *PEFT):
        assert any(one.fits(row) for row in ROWS) or one.operations == MADE, one


def test_the_page_has_the_table_of_today():
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "run PYTHONPATH=tests python -m oracle.page"


def test_the_table_is_large_enough():
    assert len(ROWS) >= 150
