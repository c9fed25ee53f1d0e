"""Names in encoded examples and batches of two answers to one prompt."""

PARTS = "parts"
"""Column of an encoded example: the number of tokens of its prompt, first and second answer."""
SEGMENTS = "segments"
"""Key of a batch: which part of its example each token belongs to."""
VOTES_KEY = "votes"
"""Column and key of the votes, 1 or 0."""
REFERENCE_KEY = "reference"
"""Column and key of the reference's log-probabilities of both answers."""
PROMPT, FIRST, SECOND, PADDING = 0, 1, 2, -1
"""Values of segments."""
