"""Reads indexed corpora, segment pairs, batches and steps of them; tasks for fine-tuning."""
