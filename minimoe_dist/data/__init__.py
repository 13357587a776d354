"""Indexed corpora, segment pairs, batches and the loader; tasks for fine-tuning."""
