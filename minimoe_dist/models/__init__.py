"""Plain single-device modules: students, experts, teachers."""
