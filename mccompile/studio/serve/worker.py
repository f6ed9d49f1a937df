"""What the process that runs the model does: loads it once, captures it once, and carries out orders."""

from __future__ import annotations

import logging
import signal
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from mccompile.diagnostics.failure import Failure
from mccompile.studio.serve.orders import Answer, Given, Order, RunProgress, RunRefused, RunStopped
from mccompile.studio.serve.warm import StopAsked, WarmModel


def work(given: Given, server: Connection, stop: Event) -> None:
    """Answers with the model, then carries out one order after the other until the server is gone.

    stop: the run under way is to end with its next step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the server's to handle
    logging.getLogger("mccompile").addHandler(logging.NullHandler())  # the page shows what it would say

    def tell(answer: Answer) -> None:
        if isinstance(answer, RunProgress) and stop.is_set():
            raise StopAsked
        server.send(answer)

    try:
        warm = WarmModel(given)
    except Failure as error:
        server.send(RunRefused(error.diagnostics))
        return
    server.send(warm.loaded())
    try:
        warm.prepare(server.send)
    except Failure as error:
        server.send(RunRefused(error.diagnostics))
        return
    while True:
        try:
            order: Order = server.recv()
        except (EOFError, OSError):
            return
        try:
            tell(warm.run(order, tell))
        except StopAsked:
            server.send(RunStopped())
        except Failure as error:
            server.send(RunRefused(error.diagnostics))
