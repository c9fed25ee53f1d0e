"""What `lorakit train` does with a plan."""

import pytest

from fixtures.printed import flat
from lorakit.cli.commands import plan_first
from lorakit.planning import MemoryPlan


def test_training_begins_with_the_plan_and_reports_the_real_peak(cls_training):
    run, result = cls_training
    assert "Planned: " in result.stdout
    assert result.stdout.index("Planned: ") < result.stdout.index("Adapter")
    report = (run / "report.md").read_text()
    assert "## Memory" in report
    assert "| planned | " in report
    assert "| peak | " in report


def small(plan: MemoryPlan) -> MemoryPlan:
    from dataclasses import replace

    return replace(plan, memory_bytes=50_000_000)


@pytest.fixture
def small_machine(monkeypatch):
    unchanged = plan_first._plan_or_report
    monkeypatch.setattr(plan_first, "_plan_or_report", lambda *words: small(unchanged(*words)))


def test_what_cannot_fit_is_not_trained(cli, cls_recipe, small_machine):
    result = cli("train", cls_recipe)
    assert result.exit_code == 2
    words = flat(result.stderr)
    assert "This run cannot fit: it needs" in words
    assert "expected at most 50.0 MB" in words
    assert f"lorakit plan {cls_recipe}" in words
    assert f"lorakit train {cls_recipe} --force" in words
    assert not (cls_recipe.parent / "run").exists()


def test_force_trains_all_the_same(cli, cls_recipe, small_machine):
    result = cli("train", cls_recipe, "--force")
    assert result.exit_code == 0, result.stderr
    assert (cls_recipe.parent / "run" / "report.md").exists()


def test_what_cannot_be_planned_is_trained(cli, cls_recipe, monkeypatch):
    def broken(*words, **options):
        raise ZeroDivisionError("no such number")

    monkeypatch.setattr("lorakit.planning.plan", broken)
    result = cli("train", cls_recipe)
    assert result.exit_code == 0, result.stderr
    assert "could not be planned (ZeroDivisionError: no such number)" in result.stdout
    assert "| planned |" not in (cls_recipe.parent / "run" / "report.md").read_text()


def test_runs_that_do_not_fit_together_are_not_trained(cli, cls_recipe, small_machine):
    other = cls_recipe.parent / "other.yaml"
    other.write_text(cls_recipe.read_text().replace("/run", "/other"))
    result = cli("train", cls_recipe, other, "--together")
    assert result.exit_code == 2
    assert "These 2 runs cannot fit together: they need" in flat(result.stderr)
    assert "without --together; to try anyway, add --force" in flat(result.stderr)
    assert "in a process for each run" in flat(result.stdout)
    assert not (cls_recipe.parent / "run").exists()
