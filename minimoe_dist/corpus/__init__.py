"""Turns raw text into indexed corpora, streaming: sources -> sentences -> ids -> writer."""
