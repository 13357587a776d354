"""Training under DeepSpeed: the only room that knows about engines and ranks."""
