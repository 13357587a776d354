"""Plain single-device modules: students, their experts, and teachers."""
