"""`lorakit predict`: an adapter's predictions for a whole file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.commands.evaluate import key_of, recipe_of, refuse_ignored
from lorakit.cli.paths import adapter_location
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import BaseModel, RunOrAdapter, TrustRemoteCode, Unquantized
from lorakit.cli.views.console import closing, remark, shell_quote
from lorakit.cli.views.progress import counting
from lorakit.errors import MissingFileError, did_you_mean

_READ_KEYS = (
    *("data.text", "data.text_pair", "data.tokens", "data.messages", "data.prompt", "data.source"),
    *("data.delimiter", "data.label_separator"),
)
"""Keys of a recipe that say how a file of inputs is read and written."""


def predict(
    adapter: RunOrAdapter,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Inputs: csv, tsv, json, jsonl or parquet.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Columns and delimiter of the file, such as data.text=review."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write, with all columns: csv, tsv, jsonl or parquet; by default "
            "FILE.predictions with the extension of FILE."
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of every label.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="Prefix for the names of new columns.")] = "",
    batch_rows: Annotated[
        int, typer.Option(min=1, help="Largest number of inputs in a batch.")
    ] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum length of a new text; by default 64, or that of training."
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Predict with the base alone.")] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe that names the columns; by default that of the run."),
    ] = None,
    base_model: BaseModel = None,
    unquantized: Unquantized = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Predict every row of a file, and write it with new columns.

    Nothing of the training data is needed. After an interruption, the same command continues
    where it stopped.

    Raises:
        MissingFileError: The file does not exist.
        DataError: Its ending does not say how to read it.
    """
    if not file.is_file():
        found = "a folder" if file.is_dir() else "nothing there"
        near = [] if file.is_dir() else [entry.name for entry in file.parent.glob("*")]
        raise MissingFileError(
            f"No file to predict: got {found} at '{file}', expected a csv, tsv, json, jsonl or "
            f"parquet file.{did_you_mean(file.name, near)} Check the path."
        )
    from lorakit.recipes.data_names import require_known_ending

    require_known_ending(file, "the file to predict")  # before the output has the same
    refuse_ignored(
        [word for word in overrides or [] if key_of(word) not in _READ_KEYS],
        f"one of {', '.join(_READ_KEYS)}, as the adapter and its base stay as they are",
    )
    location = adapter_location(adapter)
    target = output or default_output(file)
    given = recipe_of(location, recipe, overrides or [])
    from lorakit.inference import PredictionSettings, load_for_inference, predict_file
    from lorakit.inference.file_predictions import adapter_identity
    from lorakit.inference.prediction_output import require_new
    from lorakit.recipes.run_directory import find_adapter

    require_new(target)  # before the base is loaded
    hide_loading_bars()
    loaded = load_for_inference(
        location, base_model, unquantized=unquantized, trust_remote_code=trust_remote_code
    )
    remark(f"{loaded.task_type} with {location} on {loaded.base}")
    if loaded.note is not None:
        remark(loaded.note)
    directory, recorded = (
        find_adapter(location) if Path(location).exists() else (Path(location), None)
    )
    named = given or recorded
    with counting("rows") as count:
        made = predict_file(
            loaded,
            file,
            target,
            PredictionSettings(probabilities, prefix, batch_rows, max_new_tokens, base),
            data=None if named is None else named.data,
            identity=adapter_identity(directory) or str(location),
            on_progress=count,
            on_note=remark,
        )
    if made.resumed:
        remark(f"{made.resumed:,} of {made.rows:,} rows had been predicted by an earlier call.")
    if made.without_input:
        remark(f"Rows without an input, whose predictions are empty: {made.without_input:,}.")
    number = f"{made.rows:,} row{'' if made.rows == 1 else 's'}"
    remark(f"Predicted {number}; new columns: {', '.join(made.columns)}")
    name = shell_quote(adapter)
    closing([made.output], {f"lorakit evaluate {name} --data FILE": "measures it on labelled data"})


def default_output(file: Path) -> Path:
    """Return the output beside a file: reviews.csv becomes reviews.predictions.csv."""
    ending = ".jsonl" if file.suffix.lower() == ".json" else file.suffix
    return file.with_name(f"{file.stem}.predictions{ending}")
