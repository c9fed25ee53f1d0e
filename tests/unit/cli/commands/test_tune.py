"""`lorakit tune`: what it refuses; tests/unit/tuning/test_search.py runs one on Ray."""


def test_an_empty_set_is_reported(cli, cls_recipe):
    result = cli("tune", cls_recipe, "search.space={lora.r: {choice: []}}")
    assert result.exit_code == 2
    assert "choice is an empty set" in result.stderr


def test_an_unknown_field_of_the_space_is_reported(cli, cls_recipe, tmp_path):
    result = cli("tune", cls_recipe, "search.space={lora.rank: {choice: [1]}}")
    assert result.exit_code == 2
    assert "Cannot search search.space: unknown key 'lora.rank'. Did you mean 'r'?" in result.stderr
    assert not (tmp_path / "run").exists()
