"""`lorakit study`: what it says, writes and recommends."""

import json

from fixtures.printed import flat


def test_a_study_shows_its_table_and_what_suffices(cli, cls_recipe, tmp_path, machines):
    section = {"ranks": [2], "target_modules": [["q_lin"]], "seeds": [1, 2]}
    section |= {"max_epochs": 1, "max_concurrent": 1}  # one process imports the libraries
    result = cli("study", cls_recipe, f"study={json.dumps(section)}")
    assert result.exit_code == 0, result.output
    words = flat(result.stdout)
    assert "1 cells, 2 seeds each" in words
    assert "modules r parameters mean loss deviation runs failed" in words
    assert "q_lin 2 256" in words
    assert "Smallest sufficient: r=2 on q_lin (256 parameters in the factors)" in words
    assert f"lorakit train {tmp_path / 'run'}/recommended.yaml" in words
