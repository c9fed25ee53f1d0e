"""Find the adapter that the user names: a run, an adapter directory, or a hub id."""

from pathlib import Path

from lorakit.errors import ConfigError, MissingFileError

CONFIG_NAME = "adapter_config.json"
RECIPE_NAME = "recipe.yaml"


def adapter_location(name: str) -> str | Path:
    """Return the location of an adapter.

    Args:
        name: An adapter directory, the directory of a run (whose adapter is in `adapter/`), or a
            hub id.

    Returns:
        The adapter's directory, or the name unchanged if it is not a directory.

    Raises:
        MissingFileError: The directory holds something else; the message says what.
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
        found = "a checkpoint without an adapter"
        step = "Train an adapter for it with `lorakit train`."
    else:
        found, step = "a directory without one", "Name the directory of a run, or its adapter/."
    raise MissingFileError(
        f"No adapter in {path}: got {found}, expected {CONFIG_NAME} there or in adapter/. {step}"
    )


def path_beside(directory: str | Path, suffix: str) -> Path:
    """Return the path of a directory with a suffix; `.` and `..` get their name.

    >>> str(path_beside("runs/a/", "-merged"))
    'runs/a-merged'
    """
    path = Path(directory)
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name(f"{path.name}{suffix}")


def require_place_of_file(path: Path, what: str) -> None:
    """Refuse a path at which no file can be written, before there is something to write.

    Args:
        path: The file; missing directories above it are created later.
        what: What will be written there, for the message.

    Raises:
        ConfigError: The path is a folder, or below a file.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir():
        problem = "it is a folder" if path.is_dir() else f"'{above}' is a file"
        raise ConfigError(
            f"Cannot write {what} to '{path}': {problem}, expected a new file, or one to replace. "
            "Choose another name."
        )


def run_of(location: str | Path) -> Path | None:
    """Return the run directory that contains an adapter directory, or None if there is none."""
    from lorakit.recipes.run_directory import RunDirectory

    run = RunDirectory.around(Path(location))
    return None if run is None else run.path
