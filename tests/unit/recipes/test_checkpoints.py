import json
from pathlib import Path

import pytest

from lorakit.errors import CheckpointError
from lorakit.recipes import checkpoints


def make(run, step, *, sealed=True):
    checkpoint = run / f"checkpoint-{step}"
    (checkpoint / "inner").mkdir(parents=True)
    (checkpoint / "weights").write_bytes(bytes(range(step % 200)))
    (checkpoint / "inner" / "state").write_text("state")
    (checkpoint / "optimizer.pt").write_text("moments")
    if sealed:
        checkpoints.seal(checkpoint)
    return checkpoint


def rewrite(checkpoint, change):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    change(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_newest_is_by_number_and_complete(tmp_path):
    make(tmp_path, 9)
    ten = make(tmp_path, 10)
    make(tmp_path, 100, sealed=False)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert [p.name for p in checkpoints.checkpoint_directories(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    assert checkpoints.newest_complete(tmp_path) == ten


def test_none_in_an_empty_run(tmp_path):
    assert checkpoints.newest_complete(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda c: (c / "weights").write_bytes(b"other"), "weights is not the file that was saved"),
        (lambda c: (c / "inner" / "state").unlink(), "inner/state is missing"),
        (lambda c: (c / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda c: (c / "manifest.json").write_text('{"fil'), "its manifest.json is damaged"),
        (lambda c: (c / "manifest.json").write_text("[]"), "its manifest.json is damaged"),
        (lambda c: (c / "manifest.json").write_text("\xff"), "its manifest.json is damaged"),
        (lambda c: (c / "manifest.json").write_text(""), "its manifest.json is damaged"),
        (
            lambda c: (c / "manifest.json").write_text('{"files": 3}'),
            "its manifest.json is damaged",
        ),
        (
            lambda c: (c / "manifest.json").write_text('{"files": {}}'),
            "its manifest.json names no files",
        ),
        (lambda c: rewrite(c, lambda m: m["files"].pop("weights")), "its manifest.json is damaged"),
        (
            lambda c: rewrite(c, lambda m: [m["files"].pop("optimizer.pt"), m.pop("sha256")]),
            "optimizer.pt is not in its manifest.json",
        ),
    ],
)
def test_damage_is_found(tmp_path, damage, problem):
    checkpoint = make(tmp_path, 5)
    assert checkpoints.problems(checkpoint) == []
    damage(checkpoint)
    assert checkpoints.problems(checkpoint) == [problem]
    assert checkpoints.remove_incomplete(tmp_path) == {checkpoint: problem}
    assert not checkpoint.exists()


def test_the_manifest_has_a_sha256_of_each_file(tmp_path):
    files = json.loads((make(tmp_path, 0) / "manifest.json").read_text())["files"]
    assert files["weights"] == {
        "bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert set(files) == {"weights", "optimizer.pt", "inner/state"}


def test_a_file_of_the_user_s_is_no_damage(tmp_path):
    checkpoint = make(tmp_path, 5)
    (checkpoint / "notes.txt").write_text("mine")
    assert checkpoints.problems(checkpoint) == []


def test_a_directory_of_another_name_is_no_checkpoint():
    with pytest.raises(CheckpointError, match="got the name 'adapter', expected 'checkpoint-'"):
        checkpoints.step_of(Path("runs/adapter"))
