"""What a run would need on a machine, by arithmetic alone: memory, traffic, time and cost."""
