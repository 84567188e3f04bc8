"""From a PyTorch model to a bundle: reparameterize, trace, quantize, build, verify."""

from .api import export_model
from .report import ExportResult
from .spec import ExportSpec, Tolerances

__all__ = ["ExportResult", "ExportSpec", "Tolerances", "export_model"]
