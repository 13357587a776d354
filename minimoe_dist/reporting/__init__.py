"""Reads what runs left behind and shows it: pages, pictures, model cards. Imports nothing heavy."""
