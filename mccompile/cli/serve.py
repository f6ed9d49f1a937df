"""`mccompile serve`: a local page on which one writes a policy, sees its plan, runs it, and looks at what it did."""

from __future__ import annotations

import argparse
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.options import add_backend, add_place, add_video, check_video, location, video_names
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.studio.serve.orders import Given

HOST, PORT = "127.0.0.1", 8765


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("serve", help="write, run and compare policies on a local page", description=__doc__)
    parser.add_argument("--model", default="embedded", metavar="NAME", help="`embedded` (default) or a folder")
    parser.add_argument("--folder", type=location, default=Path(), metavar="DIR", help="of policies; default: here")
    parser.add_argument("--host", default=HOST, metavar="NAME", help="default: %(default)s, for this machine alone")
    parser.add_argument("--port", type=_port, default=PORT, metavar="N", help="default: %(default)s; 0: a free one")
    add_video(parser.add_argument_group("the video (what is left out is the model's own)"))
    how = parser.add_argument_group("how")
    add_place(how)
    add_backend(how, "inductor")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    from mccompile.generate.load import find_folder
    from mccompile.generate.places import prepare_place
    from mccompile.studio.serve.errors import ServeUnavailable

    try:
        import uvicorn

        from mccompile.studio.serve.app import application
        from mccompile.studio.serve.guard import Door
    except ImportError as error:
        raise ServeUnavailable(str(error)) from None
    from mccompile.studio.serve.desk import Desk
    from mccompile.studio.serve.process import WorkerProcess
    from mccompile.studio.serve.worker import work

    check_video(arguments)
    find_folder(arguments.model)  # a name that is none is told of before a process is started for it
    prepare_place(arguments.folder)
    given, door = _given(arguments), Door.of(arguments.host)
    with _bound(arguments.host, arguments.port) as bound, tempfile.TemporaryDirectory(prefix="mccompile-") as results:
        say(f"loading {arguments.model}")
        desk = Desk(lambda: WorkerProcess(work, given))
        try:
            app = application(desk, arguments.folder, Path(results), door)
            config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", server_header=False)
            say(f"{_address(arguments.host, bound.getsockname()[1])}{f'?token={door.token}' * bool(door.token)}")
            say("Ctrl-C ends it")
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:
            say("ended")
        finally:
            desk.close()
    return 0


def _port(text: str) -> int:
    """The number of a port; 0 for any that is free."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 0 to 65535")
    return int(text)


def _given(arguments: argparse.Namespace) -> Given:
    from mccompile.studio.serve.orders import Given

    return Given(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        backend=arguments.backend,
        deny_refusals=arguments.deny == "refusals",
        settings=video_names(arguments),
        seed=arguments.seed,
    )


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises AddressRefused (MC0762)."""
    from mccompile.generate.places import reason
    from mccompile.studio.serve.errors import AddressRefused

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "that is no name of a machine"
        raise AddressRefused(f"{host or 'every address'}, port {port}", why) from None


def _address(host: str, port: int) -> str:
    shown = {"": "127.0.0.1", "0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
