"""Find the adapter a user means: a run, an adapter directory, or a hub id."""

from pathlib import Path

from lorakit.errors import MissingFileError

CONFIG_NAME = "adapter_config.json"
RECIPE_NAME = "recipe.yaml"


def adapter_location(name: str) -> str | Path:
    """Return where an adapter lies.

    Args:
        name: An adapter directory, the directory of a run (whose adapter is in `adapter/`), or a
            hub id.

    Returns:
        The adapter's directory; a name that is no directory is returned as it is.

    Raises:
        MissingFileError: The directory holds something else; says what.
    """
    path = Path(name)
    if not path.is_dir():
        return name
    for candidate in (path, path / "adapter"):
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    if (path / RECIPE_NAME).is_file():
        found = "a run that has not finished"
        step = f"Finish it with `lorakit train {path / RECIPE_NAME} --resume`."
    elif (path / "config.json").is_file():
        found = "an ordinary checkpoint without adapter"
        step = "Train an adapter for it with `lorakit train`."
    else:
        found, step = "a directory without one", "Name a run's directory, or its adapter/."
    raise MissingFileError(
        f"No adapter in {path}: got {found}, expected {CONFIG_NAME} there or in adapter/. {step}"
    )


def run_of(location: str | Path) -> Path | None:
    """Return the run directory an adapter directory lies in, or None for one that stands alone."""
    run = Path(location).parent
    return run if (run / RECIPE_NAME).is_file() else None
