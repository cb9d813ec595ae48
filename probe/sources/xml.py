"""XML from outside, bounded: no entities, no external files, no depth or size that no description of a machine has."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from probe.errors import SourceError

MAX_DEPTH = 64
MAX_ELEMENTS = 150_000
_CURE = "Give the whole file as the tool wrote it, or the output of `nvidia-smi topo -m`."


class _TooMuchError(Exception):
    """The document is larger than any description of a machine."""


class _BoundedBuilder(TreeBuilder):
    """Stops a document that is made to fill memory while it is read, not after."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._elements = 0

    def start(self, tag: str, attrs: dict[str, str]) -> Element:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            raise _TooMuchError(f"is nested deeper than {MAX_DEPTH} elements")
        if self._elements > MAX_ELEMENTS:
            raise _TooMuchError(f"has more than {MAX_ELEMENTS:,} elements")
        return super().start(tag, attrs)

    def end(self, tag: str) -> Element:
        self._depth -= 1
        return super().end(tag)


def parse_xml(text: str, *, where: str) -> Element:
    """The root element. Raises SourceError where the text is no XML, is cut, or is built to harm."""
    try:
        parser = DefusedXMLParser(target=_BoundedBuilder(), encoding="utf-8", forbid_external=True)
        parser.feed(text.lstrip("\ufeff \t\r\n").encode("utf-8", "surrogatepass"))
        root = parser.close()
    except DefusedXmlException as error:
        raise SourceError(f"{where}: the XML declares entities or reaches outside", cure=_CURE) from error
    except (ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{where} is no whole XML: {error}", cure=_CURE) from error
    except _TooMuchError as error:
        raise SourceError(f"{where}: the XML {error}", cure=_CURE) from error
    if not isinstance(root, Element):
        raise SourceError(f"{where} is XML without content", cure=_CURE)
    return root
