"""Combined adapters to try: made from sliders, kept in the hidden folder until others follow."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from lorakit.errors import ConfigError, MissingFileError
from lorakit.files.atomic import creating_directory, write_text
from lorakit.files.json_files import read_json_object
from lorakit.runs.paths import STATE_FOLDER

_FOLDER = "mixtures"
_RECIPE = "mixture.json"
_KEPT = 8


def mixture_name(weights: Mapping[str, float]) -> str:
    """Return what a mixture is called.

    >>> mixture_name({"german": 0.7, "french": -0.25})
    '0.7 german − 0.25 french'
    """
    text = ""
    for name, weight in weights.items():
        sign = (" − " if weight < 0 else " + ") if text else ("−" if weight < 0 else "")
        text += f"{sign}{abs(weight):g} {name}"
    return text


def write_mixture(
    root: Path,
    adapters: Mapping[str, Path],
    weights: Mapping[str, float],
    method: str = "linear",
    heads_from: str | None = None,
) -> Path:
    """Combine adapters as `lorakit combine` does, into the hidden folder; the oldest are removed.

    Args:
        root: Folder of runs.
        adapters: Directories with the files of adapters, by name.
        weights: Weight of each, by name; those of 0 are left out.
        method: Method of combining.
        heads_from: Name of the adapter whose heads and labels are kept, if they differ.

    Returns: The directory of the mixture, which has its adapter in `adapter/`.

    Raises:
        ConfigError: All weights are 0.
        LorakitError: The adapters cannot be combined.
    """
    used = {name: weight for name, weight in weights.items() if weight}
    if not used:
        raise ConfigError(
            "Nothing to combine: got weights of 0 alone, expected one above or below it. Move a "
            "slider."
        )
    from lorakit.adapters import Adapter, combine
    from lorakit.adapters.formats.companions import write_with_companions
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.adapters.lineage import common_lineage

    parts = {name: [str(adapters[name]), weight] for name, weight in used.items()}
    files = [sorted(adapters[name].glob("adapter_*")) for name in used]
    stamps = [[file.stat().st_mtime_ns for file in each] for each in files]
    key = hashlib.sha256(json.dumps([parts, stamps, method, heads_from]).encode()).hexdigest()[:12]
    place = mixture_place(root, key)
    heads = heads_from if heads_from in used else None
    if not (place / _RECIPE).is_file():
        lineages = {name: InferenceSettings.load(adapters[name]).lineage for name in used}
        lineage = common_lineage(lineages)
        loaded = {name: Adapter.load(adapters[name]) for name in used}
        made = combine(loaded, used, method, heads_from=heads)  # type: ignore[arg-type]  # `combine` checks it
        with creating_directory(place) as partial:
            first = adapters[heads or next(iter(used))]
            write_with_companions(made, partial / "adapter", first, lineage)
            about = {"weights": used, "method": method, "heads_from": heads}
            write_text(partial / _RECIPE, json.dumps(about) + "\n")
        _remove_old(place.parent)
    return place


def read_mixture(place: Path) -> str:
    """Return the name of a mixture.

    Raises:
        MissingFileError: There is none; it may have been removed because others followed.
    """
    try:
        weights = read_json_object(place / _RECIPE)["weights"]
        return mixture_name({str(name): float(weight) for name, weight in weights.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MissingFileError(
            f"No mixture in {place}: expected one of the last {_KEPT} that were tried. Combine the "
            "adapters again."
        ) from None


def labelling_adapter(adapter: Path) -> str | None:
    """Return the name of the adapter whose labels a mixture gives; None if it is no mixture.

    Args:
        adapter: Directory of an adapter, which may be that of a mixture.
    """
    try:
        about = read_json_object(adapter.parent / _RECIPE)
        return str(about.get("heads_from") or next(iter(about["weights"])))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def mixture_place(root: Path, key: str) -> Path:
    """Return the directory of a mixture.

    Raises:
        MissingFileError: The key is not one that a mixture can have.
    """
    if not key.isalnum():
        raise MissingFileError(
            f"No mixture {key!r}: expected letters and digits. Combine the adapters again."
        )
    return root / STATE_FOLDER / _FOLDER / key


def _remove_old(folder: Path) -> None:
    made = sorted(
        (each for each in folder.iterdir() if each.is_dir()),
        key=lambda place: place.stat().st_mtime,
    )
    for old in made[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
