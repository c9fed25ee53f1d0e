"""Checkpoints, which are complete only if their manifest of hashes exists and matches."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from lorakit.errors import CheckpointError, first_few
from lorakit.files.atomic import write_text

MANIFEST = "manifest.json"
_ALWAYS = ("adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "optimizer.pt")
"""Files that every checkpoint has."""
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_directories(run_path: Path) -> list[Path]:
    """Return the checkpoint directories of a run, complete or not, oldest step first."""
    found = [path for path in run_path.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was saved.

    >>> step_of(Path("runs/a/checkpoint-120"))
    120
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint: got the name '{checkpoint.name}', expected "
            "'checkpoint-' and a number. Name a directory that training wrote."
        )
    return int(match[1])


def seal(checkpoint: Path) -> None:
    """Complete a checkpoint: flush its files to the disk, then write their hashes."""
    files = {
        path.relative_to(checkpoint).as_posix(): _fingerprint(path) for path in _files(checkpoint)
    }
    manifest = {"files": files, "sha256": _digest(files)}
    write_text(checkpoint / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def problems(checkpoint: Path) -> list[str]:
    """Return why a checkpoint is not complete, as phrases; empty if it is complete."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected: dict[str, Any] = dict(manifest["files"])
    except FileNotFoundError:
        return [f"it has no {MANIFEST}"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"its {MANIFEST} is damaged"]
    if not expected:
        return [f"its {MANIFEST} names no files"]
    if manifest.get("sha256", _digest(expected)) != _digest(expected):
        return [f"its {MANIFEST} is damaged"]
    found = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
    missing = [f"{name} is missing" for name in expected if name not in found]
    unknown = [
        f"{name} is not in its {MANIFEST}" for name in _ALWAYS if name in found.keys() - expected
    ]
    changed = [
        f"{name} is not the file that was saved"
        for name, path in found.items()
        if name in expected and _fingerprint(path) != expected[name]
    ]
    return missing + unknown + changed or _weight_problems(checkpoint)


def _weight_problems(checkpoint: Path) -> list[str]:
    weights = checkpoint / "adapter_model.safetensors"
    if not weights.is_file():
        return []
    from lorakit.files.tensor_files import has_unusable_numbers  # imports torch

    return [f"{weights.name} holds NaN or infinity"] if has_unusable_numbers(weights) else []


def newest_complete(run_path: Path) -> Path | None:
    """Return the complete checkpoint with the highest step, or None."""
    newest_first = reversed(checkpoint_directories(run_path))
    return next((path for path in newest_first if not problems(path)), None)


def remove_incomplete(run_path: Path) -> dict[Path, str]:
    """Delete incomplete and damaged checkpoints; return the problem of each."""
    found = {path: problems(path) for path in checkpoint_directories(run_path)}
    incomplete = {path: first_few(wrong) for path, wrong in found.items() if wrong}
    for path in incomplete:
        shutil.rmtree(path)
    return incomplete


def _digest(files: dict[str, Any]) -> str:
    """Return a hash of a manifest's entries, which detects a manifest that has lost entries."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _files(checkpoint: Path) -> list[Path]:
    return sorted(
        path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
