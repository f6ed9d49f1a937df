"""The language server over stdio (pygls): every answer is made of the text as the editor has it now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path, to_fs_path
from pygls.workspace import ServerTextPosition, ServerTextRange, TextDocument

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.builtins import RESERVED
from mccompile.language.fmt import format_policy
from mccompile.language.parse import keywords, parse
from mccompile.lsp.completion import CandidateKind, complete
from mccompile.lsp.document import Document, declaration, places_of, read, word_at
from mccompile.lsp.hover import hover
from mccompile.lsp.lens import lenses

NAME = "mccompile"
_KINDS: dict[CandidateKind, types.CompletionItemKind] = {
    "keyword": types.CompletionItemKind.Keyword, "function": types.CompletionItemKind.Function,
    "source": types.CompletionItemKind.Field, "clock": types.CompletionItemKind.Unit,
    "parameter": types.CompletionItemKind.Variable, "signal": types.CompletionItemKind.Variable,
    "option": types.CompletionItemKind.Property, "word": types.CompletionItemKind.EnumMember,
    "set": types.CompletionItemKind.Constant, "policy": types.CompletionItemKind.File,
}  # fmt: skip


def build_server(version: str) -> LanguageServer:
    """The server with all that it answers; `start_io` runs it."""
    server = LanguageServer(NAME, version)

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(
        ls: LanguageServer, params: types.DidOpenTextDocumentParams | types.DidChangeTextDocumentParams
    ) -> None:
        text = ls.workspace.get_text_document(params.text_document.uri)
        document = _read(text)
        found = [_shown(text, document, problem) for problem in document.problems]
        ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(text.uri, found, text.version))

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(ls: LanguageServer, params: types.DidCloseTextDocumentParams) -> None:
        ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(params.text_document.uri, []))

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def hovered(ls: LanguageServer, params: types.HoverParams) -> types.Hover | None:
        text = ls.workspace.get_text_document(params.text_document.uri)
        document = _read(text)
        word = word_at(document.source, _offset(text, document, params.position))
        said = hover(document, word) if word is not None else ""
        if word is None or not said:
            return None
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, said), _range(text, word))

    @server.feature(types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(trigger_characters=['"', ":"]))
    def completed(ls: LanguageServer, params: types.CompletionParams) -> types.CompletionList:
        text = ls.workspace.get_text_document(params.text_document.uri)
        document = _read(text)
        found = complete(document, _offset(text, document, params.position))
        items = [types.CompletionItem(c.text, kind=_KINDS[c.kind], detail=c.says or None) for c in found]
        return types.CompletionList(is_incomplete=False, items=items)

    @server.feature(types.TEXT_DOCUMENT_DEFINITION)
    def defined(ls: LanguageServer, params: types.DefinitionParams) -> types.Location | None:
        text = ls.workspace.get_text_document(params.text_document.uri)
        document = _read(text)
        word = word_at(document.source, _offset(text, document, params.position))
        place = declaration(document, word.text) if word is not None else None
        if place is None:
            return None
        if place.source == document.source:
            return types.Location(text.uri, _range(text, place))
        return _elsewhere(place)

    _add_edits(server)
    return server


def _add_edits(server: LanguageServer) -> None:
    """What changes the text, and what stands beside it."""

    @server.feature(types.TEXT_DOCUMENT_REFERENCES)
    def referenced(ls: LanguageServer, params: types.ReferenceParams) -> list[types.Location]:
        text = ls.workspace.get_text_document(params.text_document.uri)
        return [types.Location(text.uri, _range(text, place)) for place in _places(text, params.position)]

    @server.feature(types.TEXT_DOCUMENT_PREPARE_RENAME)
    def prepared(ls: LanguageServer, params: types.PrepareRenameParams) -> types.Range | None:
        text = ls.workspace.get_text_document(params.text_document.uri)
        document = _read(text)
        word = word_at(document.source, _offset(text, document, params.position))
        return _range(text, word) if word is not None and places_of(document, word) else None

    @server.feature(types.TEXT_DOCUMENT_RENAME)
    def renamed(ls: LanguageServer, params: types.RenameParams) -> types.WorkspaceEdit | None:
        text = ls.workspace.get_text_document(params.text_document.uri)
        if not params.new_name.isidentifier() or params.new_name in RESERVED | keywords():
            return None
        edits = [types.TextEdit(_range(text, place), params.new_name) for place in _places(text, params.position)]
        return types.WorkspaceEdit(changes={text.uri: edits}) if edits else None

    @server.feature(types.TEXT_DOCUMENT_FORMATTING)
    def formatted(ls: LanguageServer, params: types.DocumentFormattingParams) -> list[types.TextEdit]:
        text = ls.workspace.get_text_document(params.text_document.uri)
        document = _read(text)
        if document.parsed is None:
            return []
        new = format_policy(parse(document.source))
        whole = document.source.span(0, len(document.source.text))
        return [] if new == text.source else [types.TextEdit(_range(text, whole), new)]

    @server.feature(types.TEXT_DOCUMENT_CODE_LENS)
    def beside(ls: LanguageServer, params: types.CodeLensParams) -> list[types.CodeLens]:
        text = ls.workspace.get_text_document(params.text_document.uri)
        found = lenses(_read(text))
        return [types.CodeLens(_range(text, one.span), types.Command(one.text, command="")) for one in found]

    @server.feature(types.TEXT_DOCUMENT_CODE_ACTION)
    def mended(ls: LanguageServer, params: types.CodeActionParams) -> list[types.CodeAction]:
        text = ls.workspace.get_text_document(params.text_document.uri)
        asked = params.range
        return [action for problem in _read(text).problems for action in _actions(text, problem)
                if _touches(action, text.uri, asked)]  # fmt: skip


def _read(text: TextDocument) -> Document:
    path = to_fs_path(text.uri)
    return read(text.source, Path(path).name if path else text.uri, Path(path) if path else None)


def _places(text: TextDocument, position: types.Position) -> tuple[Span, ...]:
    document = _read(text)
    word = word_at(document.source, _offset(text, document, position))
    return places_of(document, word) if word is not None else ()


# ---- places: lines and columns of the editor are UTF-16, or what it asked for -------------------------------
def _offset(text: TextDocument, document: Document, position: types.Position) -> int:
    at = text.position_from_client_units(position)
    lines = document.source.text.split("\n")
    line = min(at.line, len(lines) - 1)
    return sum(len(one) + 1 for one in lines[:line]) + min(at.character, len(lines[line]))


def _range(text: TextDocument, span: Span) -> types.Range:
    ends = (span.start, span.end)
    first, last = (ServerTextPosition(span.source.line_of(at) - 1, span.source.column_of(at) - 1) for at in ends)
    return text.range_to_client_units(ServerTextRange(first, last))


def _elsewhere(place: Span) -> types.Location | None:
    """A place in another file, whose columns are counted as UTF-16."""
    uri = from_fs_path(str(place.source.path)) if place.source.path is not None else None
    if uri is None:
        return None
    return types.Location(uri, _range(TextDocument(uri, place.source.text), place))


# ---- problems ----------------------------------------------------------------------------------------------
def _names_a_file(document: Document) -> Span | None:
    """The first place that names another file: the base, or a library."""
    if document.parsed is None:
        return None
    uses = (item.span for item in document.parsed.items if isinstance(item, ast.UseDecl))
    return document.parsed.extends.span if document.parsed.extends is not None else next(uses, None)


def _shown(text: TextDocument, document: Document, problem: Diagnostic) -> types.Diagnostic:
    """A problem at its place; one of a base stands where this text names the base."""
    span = problem.span
    said = [problem.message(), problem.span_label(), *problem.notes(), *(f"help: {h.text}" for h in problem.helps())]
    if span is None or span.source != document.source:
        elsewhere = _names_a_file(document)
        where = f"{span.source.name}:{span.line}:{span.column}: " if span is not None else ""
        said[0] = where + said[0]
        span = elsewhere or document.source.span(0, 0)
    related = [
        types.DiagnosticRelatedInformation(types.Location(text.uri, _range(text, label.span)), label.text)
        for label in problem.secondary()
        if label.span.source == document.source
    ]
    return types.Diagnostic(
        _range(text, span), "\n".join(line for line in said if line), severity=types.DiagnosticSeverity.Error,
        code=problem.code, source=NAME, related_information=related or None,
    )  # fmt: skip


def _actions(text: TextDocument, problem: Diagnostic) -> Sequence[types.CodeAction]:
    """The edits that a problem's helps propose."""
    found = []
    for help_ in problem.helps():
        if help_.edit is not None and problem.span is not None and help_.edit.span.source == problem.span.source:
            edit = types.TextEdit(_range(text, help_.edit.span), help_.edit.text)
            changes = types.WorkspaceEdit(changes={text.uri: [edit]})
            found.append(types.CodeAction(help_.text, kind=types.CodeActionKind.QuickFix, edit=changes))
    return found


def _touches(action: types.CodeAction, uri: str, asked: types.Range) -> bool:
    edits = (action.edit.changes or {}).get(uri, []) if action.edit is not None else []
    return any(e.range.start.line <= asked.end.line and asked.start.line <= e.range.end.line for e in edits)
