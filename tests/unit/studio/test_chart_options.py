"""Pictures of many runs: axes, scales and texts."""

import json

from lorakit.studio.chart_options import is_logarithmic, parallel_option, scatter_option


def test_a_scatter_of_numbers_and_of_texts():
    numbers = scatter_option([("a", 1, 0.5), ("b", 64, 0.2)], "lora.r", "loss")
    assert numbers["xAxis"]["type"] == "log"
    texts = scatter_option([("a\x07", "q, v", 0.5)], "lora.target_modules", "loss")
    assert texts["xAxis"]["data"] == ["q, v"]
    assert texts["series"][0]["data"] == [{"name": "a\\x07", "value": ["q, v", 0.5]}]
    json.dumps([numbers, texts, scatter_option([], "x", "y")])


def test_room_beside_the_points_does_not_begin_below_zero():
    rates = [("a", 0.0005, 0.5), ("b", 0.009, 0.2)]
    assert scatter_option(rates, "training.learning_rate", "loss")["xAxis"]["min"] == 0
    assert "min" not in scatter_option([("a", 40, 1), ("b", 50, 2)], "x", "y")["xAxis"]
    assert "min" not in scatter_option([("a", -1, 1), ("b", 50, 2)], "x", "y")["xAxis"]


def test_parallel_coordinates_end_with_the_metric():
    columns = [("lora.r", [1, 8]), ("lora.target_modules", ["q", 4.0])]
    option = parallel_option(columns, ("loss", [0.5, 0.2]), 1, is_minimized=True)
    assert [axis["name"] for axis in option["parallelAxis"]] == ["r", "target_modules", "loss"]
    assert option["parallelAxis"][1]["data"] == ["q", "4.0"]
    assert option["series"][0]["data"][1]["lineStyle"]["width"] > 2
    json.dumps(option)


def test_numbers_far_apart_are_drawn_on_a_log_scale():
    assert is_logarithmic([1e-5, 1e-3])
    assert not is_logarithmic([0, 100])
    assert not is_logarithmic([4, 8])
    assert not is_logarithmic([])
