"""Results of one block as a source: `blocks[50%].attn.residual`."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language import ast
from mccompile.language.errors import layers, tensors, values
from mccompile.language.types import Poison, TypedTensor, source_words

RESULT = "residual"


def block_source(
    written: ast.BlockResult, first: ir.SourceRef | None, report: Callable[[Diagnostic], Poison]
) -> TypedTensor | Poison:
    """The source that the words stand for. first: that of another place of the policy, which looks at one block."""
    *parts, result = written.names
    if result.text != RESULT or len(parts) > 1:
        word = result if result.text != RESULT else parts[1]
        return report(tensors.NoBlockResult(word.span, word.text))
    if parts and parts[0].text not in ir.SUBLAYERS:
        return report(layers.UnknownSublayer(parts[0].span, parts[0].text))
    if isinstance(written.block, float) and written.block >= 1:
        return report(values.OutOfBounds(written.span, "the block, a share of the depth,", "0%", "99%"))
    part = cast("ir.SublayerName", parts[0].text) if parts else None
    source = ir.SourceRef("block", block=ir.BlockRef(written.block, part, at=written.span), at=written.span)
    if first is not None and first != source:
        return report(tensors.AnotherBlock(written.span, source_words(first)))
    return TypedTensor(source, per_token=True, late=False)
