"""The bodies of requests: OpenAI's fields, checked strictly."""

__all__: list[str] = []
