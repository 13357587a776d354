"""Objectives: pure functions of the student's and the teacher's signals."""
