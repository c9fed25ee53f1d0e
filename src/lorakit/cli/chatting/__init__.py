"""The conversation that `lorakit chat` holds."""
