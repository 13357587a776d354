"""The long trial of reliability: what is killed, stopped, damaged and refused, against its goals.

    python -m benchmarks.soak [--minutes 60] [--seed N] [--only TRIAL …] [--folder runs/soak]

(`make soak SOAK_MINUTES=60` is the same; two or three minutes give a share of everything.) Each
trial gets a share of the minutes and does as much as fits; what it measured is kept in the folder,
so that a trial that was interrupted goes on with what is missing when the same command is started
again. At the end the page docs/reliability.md is written, with its picture and numbers in
docs/results; a trial of less than ten minutes or of a few parts writes it into the folder. Status 1
where a goal was missed.

Most ranks are forked from a server that has imported torch and DeepSpeed (tests/distributed.py):
two hundred starts from nothing would measure imports. Restarts are timed from nothing.
"""
