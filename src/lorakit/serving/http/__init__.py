"""The HTTP surface of the server: OpenAI's protocol on FastAPI."""

__all__: list[str] = []
