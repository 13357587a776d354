"""Losses: pure functions of what students and teachers give, and of labels."""
