"""The `frozen_part:` section of a recipe."""

from pydantic import Field

from lorakit.config import StrictConfig


class FrozenPartConfig(StrictConfig):
    """The blocks of the base below the first adapted one, if `lora` leaves such blocks.

    Their output for an example is the same in every epoch and every run, so it is computed once and
    kept on disk.
    """

    cache_bytes: int = Field(4_000_000_000, ge=0)
    """Largest size of all kept outputs together, of all bases; 0 computes them in every step."""

    cache_directory: str | None = None
    """Directory of the kept outputs; None takes lorakit/frozen-part in the user's cache."""

    dropout: bool = False
    """Whether the base's own dropout stays on in these blocks. Nothing is kept then, as no two
    outputs are the same."""
