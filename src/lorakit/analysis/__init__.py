"""Pictures and figures about adapters and bases."""
