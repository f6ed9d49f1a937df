"""Which errors inside a call are about its sizes, and which say their own cause."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from mccompile.capture.errors import CallError
from mccompile.runtime.new_sizes import told_of


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), TorchDynamoException("no compiler")])
def test_errors_with_a_cause_of_their_own_pass(error: Exception) -> None:
    assert issubclass(BackendCompilerFailed, TorchDynamoException)
    with pytest.raises(type(error), match=str(error)), told_of("the graph", nn.Identity(), {}):
        raise error


def test_a_full_host_is_no_size_of_the_call() -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), told_of("the graph", nn.Identity(), {}):
        torch.empty(2**50)


def test_other_errors_are_about_the_sizes() -> None:
    inputs = {"x": torch.ones(2, 3)}
    with pytest.raises(CallError, match="MC0405") as refused, told_of("the graph", nn.Identity(), inputs):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert "the graph does not run at this size" in str(refused.value)
    assert "[2, 3]" in str(refused.value)
