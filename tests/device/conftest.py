"""The tiny pipeline of the runtime's tests."""

from tests.runtime.conftest import shared, tiny

__all__ = ["shared", "tiny"]
