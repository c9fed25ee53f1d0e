"""`lorakit generate`: try an adapter on texts: continue, answer, classify or tag them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.paths import adapter_location
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import TrustRemoteCode
from lorakit.cli.views.console import merged_name, next_steps, remark, say, shell_quote, table
from lorakit.errors import ConfigError, DataError, MissingFileError

if TYPE_CHECKING:
    from lorakit.inference import LoadedModel

SHOWN_CHARACTERS = 60
OUTSIDE = "O"  # the tag of a word that belongs to no entity


def generate(
    adapter: Annotated[
        str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or an adapter directory.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts; by default each line of stdin."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="File with one text per line; - is stdin.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also show the base without the adapter.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum length of an answer; by default 64, or that of training."
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(min=0, help="0 takes the most likely token; above 0, tokens are sampled."),
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Sample from the most likely tokens with this total probability."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 42,
    base_model: Annotated[
        str | None, typer.Option(help="Base model; by default the one recorded in the adapter.")
    ] = None,
    unquantized: Annotated[
        bool,
        typer.Option(
            "--unquantized", help="Use the base as saved, although training quantised it."
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Try an adapter on texts: answer, classify or tag them."""
    location = adapter_location(adapter)
    prompts = read_texts(texts or [], file)
    if top_p is not None and temperature == 0:
        raise ConfigError(
            "--top-p requires sampling: got --temperature 0, expected one above 0. "
            "Add --temperature 1, or remove --top-p."
        )
    from lorakit.inference import load_for_inference

    hide_loading_bars()
    loaded = load_for_inference(
        location, base_model, unquantized=unquantized, trust_remote_code=trust_remote_code
    )
    remark(f"{loaded.task_type} with {location} on {loaded.base}")
    if loaded.task_type == "SEQ_CLS":
        show_classes(loaded, prompts, base)
    elif loaded.task_type == "TOKEN_CLS":
        show_tags(loaded, prompts, base)
    else:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        options |= {"seed": seed} | ({"top_p": top_p} if top_p is not None else {})
        show_texts(loaded, prompts, base, options)
    name = shell_quote(adapter)
    steps = {} if base else {f"lorakit generate {name} ... --base": "also shows the base"}
    next_steps(
        {**steps, f"lorakit merge {name} {merged_name(adapter)}": "writes a plain checkpoint"},
        stderr=True,
    )


def read_texts(given: Sequence[str], file: Path | None) -> list[str]:
    """Return the input texts.

    Args:
        given: Texts on the command line.
        file: File with one text per line; "-" is stdin, which is also read if neither texts nor
            a file are given.

    Raises:
        ConfigError: There are texts and a file, or neither.
        DataError: The file holds no text, or is not UTF-8.
        MissingFileError: The file does not exist.
    """
    if given and file is not None:
        raise ConfigError(
            f"Two sources of texts: got {len(given)} on the command line and --file {file}, "
            "expected one of the two. Remove one."
        )
    if given:
        return list(given)
    if file is None and sys.stdin.isatty():
        raise ConfigError(
            "No text: got none on the command line, expected at least one. Add it in quotes, name "
            "a file with --file, or pipe one text per line into the command."
        )
    where = "stdin" if file is None or str(file) == "-" else str(file)
    try:
        content = sys.stdin.read() if where == "stdin" else Path(where).read_text("utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"No file {where} for --file. Check the path.") from None
    except IsADirectoryError:
        raise MissingFileError(f"--file {where} is a directory, expected a text file.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"Cannot read {where}: byte {error.start} is not UTF-8. Save the texts as UTF-8."
        ) from None
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"No text in {where}: got no line with text, expected one text per line.")
    return lines


def show_texts(
    loaded: LoadedModel, prompts: Sequence[str], base: bool, options: dict[str, Any]
) -> None:
    """Print the generated texts; nothing else for one prompt without --base."""
    from lorakit.inference import generate_text

    answers = {"adapter": generate_text(loaded, prompts, **options)}
    if base:
        answers["base alone"] = generate_text(loaded, prompts, use_base=True, **options)
    if len(prompts) == 1 and not base:
        say(answers["adapter"][0])
        return
    for number, prompt in enumerate(prompts):
        say(f"{'' if number == 0 else chr(10)}> {prompt}", style="bold")
        for name, texts in answers.items():
            if base:
                say(f"[{name}]", style="dim")
            say(texts[number])


def show_classes(loaded: LoadedModel, prompts: Sequence[str], base: bool) -> None:
    """Print each text's label with its probability."""
    from lorakit.inference import classify

    texts = pairs_of(prompts) if loaded.settings.text_pair else list(prompts)
    found = [classify(loaded, texts)]
    columns = ["label", "probability", "text"]
    if base:
        found.append(classify(loaded, texts, use_base=True))
        columns = ["label", "probability", "base alone", "probability", "text"]
        remark("The base alone has the untrained head from before training.")
    rows = []
    for number, prompt in enumerate(prompts):
        cells: list[str] = []
        for classes in found:
            cells += [classes[number].label, f"{100 * classes[number].probability:.1f}%"]
        rows.append((*cells, shorten(prompt)))
    table(columns, rows)


def pairs_of(prompts: Sequence[str]) -> list[str | tuple[str, str]]:
    """Split texts at their tab, for an adapter trained on pairs.

    Raises:
        DataError: A text has no tab.
    """
    pairs: list[str | tuple[str, str]] = []
    for number, prompt in enumerate(prompts, start=1):
        first, tab, second = prompt.partition("\t")
        if not tab:
            raise DataError(
                f"Text {number} is not a pair: got {shorten(prompt)!r}, expected two texts with a "
                "tab between them, because this adapter was trained on pairs. Add the second text."
            )
        pairs.append((first, second))
    return pairs


def show_tags(loaded: LoadedModel, prompts: Sequence[str], base: bool) -> None:
    """Print each text with its words' tags, and the tagged words' probabilities."""
    from lorakit.inference import tag

    answers = {"": tag(loaded, prompts)}
    if base:
        answers = {
            "adapter": answers[""],
            "base alone": tag(loaded, prompts, use_base=True),
        }
    for number in range(len(prompts)):
        if number:
            say()
        for name, texts in answers.items():
            words = texts[number]
            line = " ".join(w.word if w.tag == OUTSIDE else f"{w.word}/{w.tag}" for w in words)
            say(f"{name}: {line}" if name else line)
            if not base:
                tagged = [w for w in words if w.tag != OUTSIDE]
                rows = [(w.word, w.tag, f"{100 * w.probability:.1f}%") for w in tagged]
                if rows:
                    table(("word", "tag", "probability"), rows)


def shorten(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """Return the beginning of a text on one line.

    >>> shorten("one two  three", most=11)
    'one two ...'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 4].rstrip() + " ..."
