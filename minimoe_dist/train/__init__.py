"""Training under DeepSpeed, which no other room imports: engines, updates, the loop."""
