"""A client of the language server: messages over the pipes of one process, as editors send them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any


class Conversation:
    """One server process. Requests wait for their answer; notifications of the server are kept in order."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mccompile", "lsp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.numbers = count(1)
        self.versions = count(1)
        self.told: list[dict[str, Any]] = []
        self.capabilities = self.ask("initialize", processId=None, rootUri=None, capabilities={})["capabilities"]
        self.tell("initialized")

    def close(self) -> None:
        self.ask("shutdown")
        self.tell("exit")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        pipe = self.process.stdout
        assert pipe is not None
        length = 0
        while (line := pipe.readline().strip()) or not length:
            assert line, "the server has gone"
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return dict(json.loads(pipe.read(length)))

    def tell(self, method: str, **params: object) -> None:
        self.send({"method": method, "params": params})

    def ask(self, method: str, **params: object) -> Any:
        number = next(self.numbers)
        self.send({"id": number, "method": method, "params": params or None})
        while True:
            message = self.receive()
            if message.get("id") == number and "method" not in message:
                assert "error" not in message, message
                return message["result"]
            self.told.append(message)

    def problems(self, uri: str, version: int) -> list[dict[str, Any]]:
        """What the server says of one version of a text."""
        while True:
            for message in self.told:
                params = message.get("params", {})
                if params.get("uri") == uri and params.get("version") == version:
                    return list(params["diagnostics"])
            self.told.append(self.receive())


class Text:
    """A text that is open in the editor. `¦` marks the place of the cursor, and is not part of it."""

    def __init__(self, server: Conversation, path: Path, text: str) -> None:
        self.server, self.uri = server, path.as_uri()
        self.text = text.replace("¦", "", 1)
        before = text[: text.find("¦")] if "¦" in text else ""
        self.place = {"line": before.count("\n"), "character": utf16(before[before.rfind("\n") + 1 :])}
        self.version = next(server.versions)
        item = {"uri": self.uri, "languageId": "policy", "version": self.version, "text": self.text}
        server.tell("textDocument/didOpen", textDocument=item)

    def problems(self) -> list[dict[str, Any]]:
        return self.server.problems(self.uri, self.version)

    def change(self, text: str) -> None:
        self.text, self.version = text, next(self.server.versions)
        document = {"uri": self.uri, "version": self.version}
        self.server.tell("textDocument/didChange", textDocument=document, contentChanges=[{"text": text}])

    def ask(self, what: str, **more: object) -> Any:
        return self.server.ask(f"textDocument/{what}", textDocument={"uri": self.uri}, **more)

    def at_cursor(self, what: str, **more: object) -> Any:
        return self.ask(what, position=self.place, **more)

    def at(self, span: dict[str, Any]) -> str:
        """The text of a range within one line."""
        line = self.text.split("\n")[span["start"]["line"]].encode("utf-16-le")
        return line[2 * span["start"]["character"] : 2 * span["end"]["character"]].decode("utf-16-le")

    def edited(self, edits: list[dict[str, Any]]) -> str:
        lines = self.text.split("\n")

        def offset(place: dict[str, int]) -> int:
            line = lines[place["line"]].encode("utf-16-le")[: 2 * place["character"]].decode("utf-16-le")
            return sum(len(one) + 1 for one in lines[: place["line"]]) + len(line)

        text = self.text
        for edit in sorted(edits, key=lambda e: offset(e["range"]["start"]), reverse=True):
            start, end = (offset(edit["range"][which]) for which in ("start", "end"))
            text = text[:start] + edit["newText"] + text[end:]
        return text


def utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
