"""Playground: a base and adapters beside each other, the same question, votes and corrections."""

__all__: list[str] = []
