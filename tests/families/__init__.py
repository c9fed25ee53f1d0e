"""A sweep over the model families of transformers: each made tiny, adapted, and checked."""
