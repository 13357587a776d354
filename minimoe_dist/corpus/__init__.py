"""Raw text to indexed corpora: sources -> sentences -> ids -> writer, streaming."""
