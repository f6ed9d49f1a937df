"""A server of interpreters for the pages: what every page imports is imported once, and each request runs in a fork.

    python -m tests.house.served PATH           listens at the socket PATH
    python served.py PATH COMMAND...            runs `mccompile COMMAND...` there, with this process's files and folder

A request is JSON, with open files beside it. A command gets its standard input, output and error that way, and the
answer is its exit status. A page sends one line of source after the other, and gets [printed, traceback] for each.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import TracebackType

HEAD = 1 << 16  # bytes of a request
TAKEN = b"!"  # nothing else is sent before it comes


def serve(path: str) -> None:
    """Answers requests until the process is ended."""
    import diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing  # noqa: F401

    import mccompile.api
    import mccompile.cli
    import mccompile.generate.compare
    import mccompile.models.magi  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            connection, _ = server.accept()
            text, files, _, _ = socket.recv_fds(connection, HEAD, 3)
            connection.sendall(TAKEN)
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(json.loads(text), connection, files)
            connection.close()
            for file in files:
                os.close(file)


def _answer(request: dict[str, object], connection: socket.socket, files: list[int]) -> None:
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[arg-type]
    status = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        if "command" in request:
            status = _command([str(word) for word in request["command"]])  # type: ignore[attr-defined]
            connection.sendall(b"%d" % status)
        else:
            _page(connection)
    finally:
        os._exit(status)


class Told:
    """Takes whatever ends a program, as an interpreter does. failed: its traceback, "" for none."""

    failed = ""

    def __enter__(self) -> Told:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self.failed = "".join(traceback.format_exception(kind, error, trace))
        return True


def _command(words: list[str]) -> int:
    from mccompile.cli import main

    sys.argv = ["mccompile", *words]
    told = Told()
    status = 1
    with told:
        try:
            status = int(main(words) or 0)
        except SystemExit as stop:
            status = int(stop.code or 0)
    sys.stderr.write(told.failed)
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _page(connection: socket.socket) -> None:
    import contextlib
    import io

    space: dict[str, object] = {"__name__": "__main__"}
    with connection.makefile("rw") as lines:
        for line in lines:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), Told() as told:
                exec(compile(json.loads(line), "<page>", "exec"), space)
            lines.write(json.dumps([out.getvalue(), told.failed]) + "\n")
            lines.flush()


def ask(path: str, request: dict[str, object], files: list[int]) -> socket.socket:
    """The connection of a request that was sent."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    socket.send_fds(connection, [json.dumps(request).encode()], files)
    if connection.recv(1) != TAKEN:
        raise ConnectionError("the server of the pages is gone")
    return connection


def command(path: str, words: list[str]) -> int:
    """The exit status of `mccompile` with these words, run at the server."""
    request = {"command": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with ask(path, request, [0, 1, 2]) as connection:
        return int(connection.recv(16) or b"1")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(command(sys.argv[1], sys.argv[2:]))
