"""Tasks that one forward pass answers, in batches of several adapters: classes, tags, vectors.

Sequence-to-sequence models, whose encoder reads the whole text before anything is written, answer
in such batches too.
"""

__all__: list[str] = []
