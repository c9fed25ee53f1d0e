import pytest

from lorakit.config import LoraConfig
from lorakit.injection.selection.targets import (
    compact_targets,
    layer_index,
    match_targets,
    name_matches,
    no_match_message,
)

PATHS = [
    f"model.layers.{i}.{part}"
    for i in range(3)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
]
ADAPTABLE = [*PATHS, "model.embed_tokens", "lm_head"]


def select(**options):
    return match_targets(LoraConfig(**options), ADAPTABLE, PATHS)


def selected(**options):
    paths, problems = select(**options)
    assert problems == []
    return paths


def the_problem(**options):
    _, problems = select(**options)
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    "names,path,expected",
    [
        (["q_proj"], "layers.0.q_proj", True),
        (["q_proj"], "q_proj", True),
        (["q_proj"], "layers.0.xq_proj", False),
        (["q_proj"], "layers.0.q_proj.inner", False),
        (["0.q_proj"], "layers.0.q_proj", True),
        (["0.q_proj"], "layers.10.q_proj", False),
        (["q.proj"], "layers.0.q_proj", False),  # a name is no regex
        ([], "q_proj", False),
        ("q_proj", "q_proj", True),
        ("q_proj", "layers.0.q_proj", False),  # a regex must match in full
        (r".*\.(q|v)_proj", "layers.0.v_proj", True),
        (r".*q_pro", "layers.0.q_proj", False),
    ],
)
def test_name_matches(names, path, expected):
    assert name_matches(names, path) is expected


@pytest.mark.parametrize(
    "path,pattern,expected",
    [
        ("model.layers.3.q", None, 3),
        ("h.11.attn.c_attn", None, 11),
        ("model.layers.1.experts.7.w1", None, 1),
        ("lm_head", None, None),
        ("model.layers.1.experts.7.w1", "experts", 7),
        ("model.layers.1.experts.7.w1", ["nothing", "layers"], 1),
        ("decoder.block.4.layer.0.q", "block", 4),
        ("model.layers.3.q", "h", None),
        ("layers.3.q", "layers", 3),
        ("xlayers.3.q", "layers", None),
    ],
)
def test_layer_index(path, pattern, expected):
    assert layer_index(path, pattern) == expected


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_all_linear_is_the_default(targets):
    assert selected(target_modules=targets) == PATHS


def test_names_keep_the_model_s_order():
    assert selected(target_modules=["v_proj", "q_proj"]) == [
        p for p in PATHS if p.endswith(("q_proj", "v_proj"))
    ]


def test_a_regex_matches_in_full():
    assert selected(target_modules=r"model\.layers\.[01]\.mlp\..*") == [
        p for p in PATHS if "mlp" in p and ".2." not in p
    ]


def test_exclusions_by_name_and_by_regex():
    assert selected(exclude_modules=["1.mlp.up_proj", "down_proj"]) == [
        p for p in PATHS if not p.endswith(("1.mlp.up_proj", "down_proj"))
    ]
    assert selected(exclude_modules=r".*mlp.*") == [p for p in PATHS if "attn" in p]


def test_layers_to_transform():
    assert selected(target_modules=["q_proj"], layers_to_transform=[0, 2]) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
    ]
    assert selected(target_modules=["q_proj"], layers_to_transform=1) == [
        "model.layers.1.self_attn.q_proj"
    ]
    assert len(selected(layers_to_transform=[1], layers_pattern="layers")) == 4


def test_a_whole_path_is_adapted_in_whatever_layer_it_is_as_in_peft():
    whole = "model.layers.1.mlp.up_proj"
    assert selected(target_modules=["q_proj", whole, "lm_head"], layers_to_transform=[0]) == [
        "model.layers.0.self_attn.q_proj",
        whole,
        "lm_head",
    ]


def test_a_misspelt_name_says_what_there_is_and_the_nearest():
    assert the_problem(target_modules=["q_porj"]) == (
        "No module matched target_modules=['q_porj']. Modules here: q_proj, v_proj, up_proj, "
        "down_proj, embed_tokens, lm_head. Did you mean 'q_proj'?"
    )


def test_one_wrong_name_among_right_ones_is_an_error():
    assert "target_modules=['k_proj']" in the_problem(target_modules=["q_proj", "k_proj"])


def test_a_regex_that_matches_nothing():
    assert "No module matched target_modules='.*q'." in the_problem(target_modules=".*q")


def test_a_name_without_a_list_is_told_from_a_regex():
    assert the_problem(target_modules="q_proj").endswith(
        "A string is a regular expression for whole paths: write a list for names, "
        "target_modules=['q_proj']."
    )


def test_an_exclusion_that_excludes_nothing_is_an_error():
    assert "No module matched exclude_modules=['up_poj']" in the_problem(exclude_modules=["up_poj"])
    assert "Did you mean 'up_proj'?" in the_problem(exclude_modules=["up_poj"])
    assert "exclude_modules='.*conv'" in the_problem(exclude_modules=".*conv")


def test_excluding_everything_is_an_error():
    assert the_problem(target_modules=["q_proj"], exclude_modules=["q_proj"]) == (
        "exclude_modules=['q_proj'] excludes every selected module."
    )


@pytest.mark.parametrize("wanted", [[3], [0, 7], [-1]])
def test_a_layer_that_is_not_there(wanted):
    missing = [i for i in wanted if i not in range(3)]
    assert the_problem(layers_to_transform=wanted) == (
        f"layers_to_transform={wanted} asks for layers {missing}, but the selected modules are in "
        "layers 0 to 2. Layers are counted from 0."
    )


def test_layers_of_modules_that_stand_in_no_list():
    assert "are in no numbered layers" in the_problem(
        target_modules=["lm_head"], layers_to_transform=[0]
    )


def test_an_empty_list_of_layers_is_an_error_not_an_adapter_of_nothing():
    assert "layers_to_transform" in the_problem(layers_to_transform=[])


def test_a_layers_pattern_without_layers_is_an_error():
    assert "layers_pattern" in the_problem(layers_pattern="layers")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_fits_no_selected_module(field):
    problem = the_problem(target_modules=["q_proj"], **{field: {"v_proj": 4}})
    assert problem.startswith(f"No module matched {field}=['v_proj']. Modules here: q_proj.")


def test_all_problems_are_collected():
    _, problems = select(
        target_modules=["q_proj", "nope"], exclude_modules=["nada"], rank_pattern={"zip": 2}
    )
    assert len(problems) == 3


def test_a_long_list_of_names_is_cut():
    paths = [f"layer{i}" for i in range(30)]
    assert "Did you mean 'all-linear'?" in no_match_message("target_modules", "all_linear", paths)
    assert "all-linear" not in no_match_message("exclude_modules", "all_linear", paths)
    message = no_match_message("target_modules", "x", paths)
    assert "layer19, …" in message and "layer20" not in message


def compact_and_match(chosen, everything):
    names = compact_targets(chosen, everything)
    return names, [p for p in everything if name_matches(names, p)]


def test_compact_targets_prefers_last_names():
    chosen = [p for p in PATHS if p.endswith("q_proj")]
    assert compact_and_match(chosen, ADAPTABLE) == (("q_proj",), chosen)


def test_compact_targets_writes_full_paths_where_a_name_is_shared():
    chosen = ["model.layers.0.self_attn.q_proj"]
    assert compact_and_match(chosen, ADAPTABLE) == (tuple(chosen), chosen)


def test_compact_targets_never_selects_a_path_that_ends_in_a_chosen_one():
    # "0.proj" in full is also the end of "inner.0.proj"; only a regex tells them apart.
    everything = ["0.proj", "inner.0.proj"]
    names, matched = compact_and_match(["0.proj"], everything)
    assert matched == ["0.proj"], names
