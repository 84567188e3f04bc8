"""The exporter's errors, each one line that says what was wrong and what to do."""

from __future__ import annotations

from runtime.errors import HolocronError


class ExportError(HolocronError):
    """What was asked for cannot be exported as asked."""


class SourceError(ExportError):
    """The architecture, the weights or the labels do not exist, cannot be read, or do not fit each other."""


class QuantizationError(ExportError):
    """The graph cannot be quantized with the ranges that were measured."""


class UnsupportedOperatorError(ExportError):
    """The graph holds something that the oldest supported TensorRT does not take."""


class EngineError(ExportError):
    """TensorRT is not there, has no device, or refused the graph."""


class VerificationError(ExportError):
    """An artefact does not answer as the model it was made from."""
