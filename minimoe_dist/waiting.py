"""Bounds waits that have no bound of their own."""

import threading
from collections.abc import Callable


def within(seconds: float, call: Callable[[], None]) -> None:
    """Calls a function in another thread, and waits no longer than that for its end.

    Signals are seen meanwhile, which the call itself may not let through.

    Args:
        seconds: longest wait.
        call: function that may wait without end, as torch's stores do for an answer.

    Raises:
        TimeoutError: it has not returned; its thread is left behind.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="bounded-wait", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    if outcome[0] is not None:
        raise outcome[0]
