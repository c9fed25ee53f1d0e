"""The facts that environment.json keeps."""

from lorakit.recipes.environment import environment_facts


def test_the_environment_names_versions_machine_and_commit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    facts = environment_facts()
    assert facts["git_commit"] is None
    assert {"python", "platform", "cpu_count", "accelerator", "versions"} <= facts.keys()
    assert facts["versions"]["transformers"]
