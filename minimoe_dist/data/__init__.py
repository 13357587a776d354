"""Indexed corpora, segment pairs, batches and the loader."""
