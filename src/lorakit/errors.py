"""Every error lorakit raises.

LorakitError
├── ConfigError          (ValueError)         a configuration or recipe is wrong
├── TargetError          (ValueError)         a pattern matches no module that can be adapted
├── ShapeError           (ValueError)         tensors or ranks do not fit together
├── DtypeError           (TypeError)          activations and weights have different dtypes
├── AdapterNameError     (KeyError)           an adapter name is unknown, taken or malformed
├── AdapterStateError    (RuntimeError)       the model is merged, or adapters exclude each other
├── AdapterMemoryError   (RuntimeError)       an adapter does not fit into a server's memory
├── AdapterFileError     (ValueError)         an adapter file is damaged or uses an unknown feature
│   └── AdapterMismatchError                  an adapter was made for another base model
├── QuantizationError    (RuntimeError)       a base cannot be quantized, or is already
├── MissingFileError     (FileNotFoundError)  a file or directory does not exist
├── OutputExistsError    (FileExistsError)    an output would overwrite an earlier run
├── DataError            (ValueError)         the examples of a dataset do not fit the task
├── ClusterError         (RuntimeError)       processes cannot meet, or Ray lacks resources
├── PlanError            (RuntimeError)       a step's memory cannot be known without running it
├── CheckpointError      (RuntimeError)       a checkpoint is incomplete or belongs to another run
├── DiskError            (OSError)            a disk is full, read-only or not writable
├── TrainingError        (RuntimeError)       training cannot learn: zero or NaN gradients, NaN loss
├── RequirementError     (RuntimeError)       a metric or an adapter is not as good as required
├── GenerationError      (RuntimeError)       the model cannot answer a request
├── QueueFullError       (RuntimeError)       too many requests wait; later ones may be answered
├── EngineStoppedError   (RuntimeError)       the server is stopping, or its engine has failed
├── ServerError          (RuntimeError)       a server is unreachable, or refuses a request
└── StoppedError         (RuntimeError)       a run was asked to stop, and has saved a checkpoint

Each class is a LorakitError and the matching builtin. `exit_code` is the exit status of the command
line: 2 for errors in what the user wrote, 1 for failures while running.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


class LorakitError(Exception):
    """Base class of all errors that lorakit raises."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message itself, safe to print (KeyError would show its repr)."""
        return escaped(str(self.args[0]), keep="\n") if self.args else ""


@dataclass(frozen=True)
class Problem:
    """One problem of a text that a user wrote."""

    sentence: str
    key: str = ""
    """Dotted key, such as "lora.r"; empty if the problem is that of the whole text."""
    line: int | None = None
    """Line of the text, from 1; None if the text is not known."""


class ConfigError(LorakitError, ValueError):
    """A configuration or recipe is wrong."""

    exit_code = 2

    def __init__(self, message: str = "", problems: Sequence[Problem] = ()):
        super().__init__(message)
        self.problems = tuple(problems)
        """The problems that the message lists, if their keys or lines are known."""


class TargetError(LorakitError, ValueError):
    """A pattern matches no module, or a module that cannot be adapted."""

    exit_code = 2


class ShapeError(LorakitError, ValueError):
    """Tensors or ranks do not fit together."""

    exit_code = 2


class DtypeError(LorakitError, TypeError):
    """Activations and weights have different dtypes."""


class AdapterNameError(LorakitError, KeyError):
    """An adapter name is unknown, taken or malformed."""

    exit_code = 2


class AdapterStateError(LorakitError, RuntimeError):
    """The model is merged, or the requested adapters exclude each other."""


class AdapterMemoryError(LorakitError, RuntimeError):
    """An adapter does not fit into the memory that a server has for adapters."""


class AdapterFileError(LorakitError, ValueError):
    """An adapter file is damaged or uses a feature lorakit does not have."""

    exit_code = 2


class AdapterMismatchError(AdapterFileError):
    """An adapter was made for another base model."""


class QuantizationError(LorakitError, RuntimeError):
    """A base cannot be quantized here, is already quantized, or must be and is not."""

    exit_code = 2


class MissingFileError(LorakitError, FileNotFoundError):
    """A file or directory does not exist."""

    exit_code = 2


class OutputExistsError(LorakitError, FileExistsError):
    """An output would overwrite an earlier run."""

    exit_code = 2


class DataError(LorakitError, ValueError):
    """The examples of a dataset do not fit the task."""

    exit_code = 2


class ClusterError(LorakitError, RuntimeError):
    """Processes cannot find each other, or a Ray cluster lacks the requested resources."""

    exit_code = 2


class PlanError(LorakitError, RuntimeError):
    """The memory of a step cannot be known without running it."""

    exit_code = 2


class CheckpointError(LorakitError, RuntimeError):
    """A checkpoint is incomplete or belongs to another run."""


class TrainingError(LorakitError, RuntimeError):
    """Training cannot learn: zero or NaN gradients, or a NaN loss."""


class RequirementError(LorakitError, RuntimeError):
    """A metric is not as good as required, or an adapter fails a check."""


class GenerationError(LorakitError, RuntimeError):
    """The model cannot answer a request: an operation failed, or its output is not finite."""


class QueueFullError(LorakitError, RuntimeError):
    """Too many requests wait; later ones may be answered."""


class EngineStoppedError(LorakitError, RuntimeError):
    """The server is stopping, or its engine has failed."""


class ServerError(LorakitError, RuntimeError):
    """A server cannot be reached, or refuses a request."""

    def __init__(self, message: str = "", code: str | None = None):
        super().__init__(message, code)
        self.code = code
        """The server's word for a refusal, such as "model_not_found", or its HTTP status; None if
        it gave no usable answer."""


_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_JOINERS = "\u200c\u200d"
"""Invisible, but needed to write Persian, Hindi and many emoji."""


def escaped(text: str, *, keep: str = "") -> str:
    r"""Escape everything in a foreign text that could control a terminal.

    Control characters, marks that reverse the direction of text, line separators, invisible format
    characters and surrogates become `\n`, `\x1b`, `\u202e` and so on. All other text, in any
    script, stays unchanged.

    Args:
        text: Text from data, a file, a model or the hub.
        keep: Control characters to keep, such as the newline in a text of several lines.

    >>> print(escaped("red: \x1b[31m, next line: \n"))
    red: \x1b[31m, next line: \n
    >>> escaped("Grüße, 你好")
    'Grüße, 你好'
    """
    if text.isprintable():
        return text
    return "".join(
        _escape(character) if _is_hidden(character) and character not in keep else character
        for character in text
    )


def _is_hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return _SHORT_ESCAPES.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


class LorakitWarning(UserWarning):
    """The request succeeded, but the user should know something about the result."""


class DiskError(LorakitError, OSError):
    """A disk is full, read-only or not writable."""


class StoppedError(LorakitError, RuntimeError):
    """A run was asked to stop, and has saved a checkpoint to resume from."""

    def __init__(self, message: str = "", checkpoint: Path | None = None, number: int = 0):
        super().__init__(message, checkpoint, number)
        self.checkpoint = checkpoint
        """The saved checkpoint."""
        self.number = number
        """Number of the signal that stopped the run."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of another library's error, or its class if it has no text.

    >>> first_line(ValueError("no such file.\nDetails: ..."))
    'no such file'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def first_few(words: Iterable[str], most: int = 3) -> str:
    """Return the first words of a list, and the number of the others.

    >>> first_few(["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
    'q_proj, k_proj, v_proj and 2 more'
    >>> first_few(["q_proj", "k_proj"], most=1)
    'q_proj and 1 more'
    """
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known word, or an empty string.

    >>> did_you_mean("q_porj", ["q_proj", "k_proj"])
    " Did you mean 'q_proj'?"
    >>> did_you_mean("zzz", ["q_proj"])
    ''
    """
    words = list(known)
    close = get_close_matches(got, words, n=1, cutoff=0.5)
    if not close:
        by_lower = {word.lower(): word for word in words}
        close = [by_lower[got.lower()]] if got.lower() in by_lower else []
    return f" Did you mean '{close[0]}'?" if close else ""
