"""A recipe made real: its corpora, teacher and students before it trains, its exports after."""
