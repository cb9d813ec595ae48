"""Pictures of machines, laid out once: whoever shows a Drawing only says how a line looks in its own medium."""

from configgen.report.drawing.nouns import Box, Drawing, Key, Label, Shade, Wire
from configgen.report.drawing.picture import draw

__all__ = ("Box", "Drawing", "Key", "Label", "Shade", "Wire", "draw")
