"""Many adapters behind one base, on OpenAI's protocol."""
