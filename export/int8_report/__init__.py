"""The INT8 report: what is known about a bundle's quantized graphs, as a page for people and as data."""

from .page import render_report

__all__ = ["render_report"]
