"""What distilled students are worth on tasks: the study of docs/results.md."""
