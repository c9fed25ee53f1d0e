"""Where rows and segments lie in a tensor."""

import pytest
import torch

from lorakit.errors import ShapeError
from lorakit.layers.executors.row_places import RowPlaces

ROWS = RowPlaces((1, -1, 0, 1), None)
SEGMENTS = RowPlaces((1, 0, 1), (2, 1, 3))
CPU = torch.device("cpu")


@pytest.mark.parametrize(("number", "rows"), [(0, [2]), (1, [0, 3])])
def test_rows_of_an_adapter(number, rows):
    x = torch.arange(8.0).view(4, 2)
    assert torch.equal(x[ROWS.of(number, CPU)], x[rows])
    (place,) = ROWS.of_copy(number)
    assert torch.equal(x[place], x[rows])


def test_segments_of_an_adapter():
    x = torch.arange(6.0).view(1, 6)
    assert x[SEGMENTS.of(1, CPU)].flatten().tolist() == [0, 1, 3, 4, 5]
    assert [x[place].tolist() for place in SEGMENTS.of_copy(1)] == [[[0, 1]], [[3, 4, 5]]]


def test_which_values_have_all_rows():
    assert ROWS.are_in(torch.zeros(4)) and not ROWS.are_in(torch.zeros(3, 4))
    assert SEGMENTS.are_in(torch.zeros(1, 6, 2)) and not SEGMENTS.are_in(torch.zeros(6))
    assert not ROWS.are_in(torch.zeros(())) and not ROWS.are_in("four")


def test_rows_are_replaced_in_every_tensor_of_a_result():
    (place,) = ROWS.of_copy(1)
    given = (torch.zeros(4, 2), [torch.zeros(4)], "kept")
    first, (second,), third = ROWS.replace(given, (torch.ones(2, 2), [torch.ones(2)], ""), place)
    assert first[:, 0].tolist() == second.tolist() == [1, 0, 0, 1]
    assert third == "kept" and not given[0].any()


@pytest.mark.parametrize(("places", "text"), [(ROWS, "4 rows"), (SEGMENTS, r"\(1, 6, …\)")])
def test_another_number_of_rows_is_named(places, text):
    with pytest.raises(ShapeError, match=text):
        places.check(torch.zeros(2, 6), "Embedding")
    with pytest.raises(ShapeError, match="a trained module returns"):
        places.replace(torch.zeros(2, 6), torch.zeros(1), (0,))
