"""One server without a model for the tests of the page."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from mccompile.studio.serve.app import application
from mccompile.studio.serve.desk import Desk
from mccompile.studio.serve.guard import Door
from tests.serve.fakes import FakeWorker


@dataclass(frozen=True)
class Served:
    """A running server. folder: of its saved policies. host: name and port."""

    url: str
    host: str
    folder: Path
    desk: Desk


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page on a free port of loopback."""
    yield from serving(tmp_path_factory.mktemp("policies"), Door.of("127.0.0.1"))


def serving(folder: Path, door: Door) -> Iterator[Served]:
    desk = Desk(FakeWorker)  # type: ignore[arg-type]
    bound = socket.create_server(("127.0.0.1", 0))
    app = application(desk, folder, folder / "results", door)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    host = f"127.0.0.1:{bound.getsockname()[1]}"
    while not server.started:
        time.sleep(0.01)
    yield Served(f"http://{host}", host, folder, desk)
    server.should_exit = True
    thread.join()
    desk.close()
    bound.close()
