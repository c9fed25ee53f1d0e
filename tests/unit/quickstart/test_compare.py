"""Training without an adapter: which weights, and what is reported."""

from lorakit.quickstart import compare, run
from lorakit.quickstart.compare import FULL, HEAD_ONLY


def test_head_only_trains_the_head_and_full_every_weight(small, tmp_path, monkeypatch):
    seen = {}

    def look(setup, on_event):
        seen[method] = {n for n, p in setup.model.named_parameters() if p.requires_grad}
        seen["all"] = {name for name, _ in setup.model.named_parameters()}
        return [0.1, 0.5, 0.25]

    monkeypatch.setattr(compare, "train_and_evaluate", look)
    files = run.write_docstrings(tmp_path, seed=0)
    recipe = run.quickstart_recipe(files, tmp_path / "run", seed=0)
    for method in (HEAD_ONLY, FULL):
        result = compare.train_without_adapter(recipe, method, 1e-3, lambda name, payload: None)
        assert (result.accuracy_before, result.accuracy) == (0.1, 0.5)
    assert seen[HEAD_ONLY] == {"score.weight"}
    assert seen[FULL] == seen["all"]
    assert not (tmp_path / "run").exists()
