"""A Drawing as SVG: one file without scripts, references or fonts of its own, for dark and light pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from configgen.report.drawing.nouns import Drawing, Label, Shade, Wire, clean

_X, _Y = 8, 16
"""Pixels of a cell."""
_ISLANDS = 6
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})

# Colours by Okabe and Ito (jfly.uni-koeln.de/color, 2008), told apart with any colour vision; in each theme as dark or
# as light as 3:1 against its paper needs for lines (WCAG 1.4.11), and 4.5:1 for text (1.4.3).
_LIGHT = (
    "--wl-paper:#fff;--wl-ink:#1b1f24;--wl-dim:#57606a;--wl-box:#f6f8fa;--wl-line:#6e7781;--wl-fast:#0072b2;"
    "--wl-net:#b06f00;--wl-slow:#a03c00;--wl-plan:#9c3d76;--wl-fastbox:#e3f1fa;--wl-netbox:#fdf3dd;"
    "--wl-tint:.2"
)
_DARK = (
    "--wl-paper:#0d1117;--wl-ink:#e6edf3;--wl-dim:#adb7c1;--wl-box:#1a212a;--wl-line:#8b949e;--wl-fast:#56b4e9;"
    "--wl-net:#e69f00;--wl-slow:#ff8a4c;--wl-plan:#e39ac4;--wl-fastbox:#10293a;--wl-netbox:#33270a;"
    "--wl-tint:.2"
)
_TINTS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00")

_STYLE = (
    f".wl{{{_LIGHT};background:var(--wl-paper);font:11.5px system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,'Liberation Sans',sans-serif;direction:ltr}"
    f"@media(prefers-color-scheme:dark){{.wl{{{_DARK}}}}}"
    f"[data-theme=light] .wl,.wl[data-theme=light]{{{_LIGHT}}}[data-theme=dark] .wl,.wl[data-theme=dark]{{{_DARK}}}"
    "@media print{.wl,[data-theme] .wl,.wl[data-theme]{" + _LIGHT + "}}"
    ".wl text{fill:var(--wl-ink);unicode-bidi:isolate;white-space:pre;paint-order:stroke;stroke:var(--wl-paper);"
    "stroke-width:3px;stroke-linejoin:round}"
    ".wl .in{stroke:none}"
    ".wl .title{font-size:15px;font-weight:600}.wl .name{font-weight:600;font-size:12px}.wl .dim{fill:var(--wl-dim)}"
    ".wl .loud,.wl .late{fill:var(--wl-slow);font-weight:600}.wl text.plan{fill:var(--wl-plan);font-weight:600}"
    ".wl rect{fill:var(--wl-box);stroke:var(--wl-line);stroke-width:1.25}"
    ".wl .paper{fill:var(--wl-paper);stroke:none}"
    ".wl .gpu{fill:var(--wl-paper);stroke:var(--wl-ink);stroke-width:1.5}"
    ".wl .gpu-off{fill:var(--wl-paper);stroke:var(--wl-slow);stroke-width:1.5;stroke-dasharray:5 4}"
    ".wl .nvswitch{fill:var(--wl-fastbox);stroke:var(--wl-fast)}"
    ".wl .nic,.wl .network{fill:var(--wl-netbox);stroke:var(--wl-net)}"
    ".wl .island{stroke:none;fill-opacity:var(--wl-tint)}"
    ".wl .stage{fill:none;stroke:var(--wl-plan);stroke-width:2}"
    ".wl polyline{fill:none;stroke:var(--wl-line);stroke-width:1;shape-rendering:crispEdges}"
    ".wl .w-nvlink,.wl .w-xgmi{stroke:var(--wl-fast);stroke-width:3}"
    ".wl .w-nic,.wl .w-network{stroke:var(--wl-net)}.wl .w-network{stroke-width:3}"
    ".wl .w-plan{stroke:var(--wl-plan);stroke-width:2;stroke-dasharray:2 3}"
    ".wl .w-slow{stroke:var(--wl-slow);stroke-width:3;stroke-dasharray:7 3}"
    ".wl .d{fill:var(--wl-fast);stroke:none}.wl .d.late{fill:var(--wl-slow);stroke:var(--wl-paper);stroke-width:1.5}"
    ".wl .head{fill:var(--wl-plan);stroke:none}" + "".join(f".wl .i{i}{{fill:{tint}}}" for i, tint in enumerate(_TINTS))
)


def svg(drawing: Drawing) -> str:
    """A whole SVG document that may also stand inside an HTML page; `data-theme="dark"` or `"light"` on it or on the
    page overrules what the reader's system prefers."""
    width, height = drawing.width * _X, drawing.height * _Y
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="wl" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"'
        f"{_attributes(aria_label=drawing.title)}>"
    )
    return "".join((head, *_elements(drawing), "</svg>\n"))


def _elements(drawing: Drawing) -> Iterator[str]:
    yield _element("title", drawing.title) + _element("desc", drawing.description) + f"<style>{_STYLE}</style>"
    # Where a viewer knows no CSS background the paper is still there.
    yield f'<rect class="paper" width="{drawing.width * _X}" height="{drawing.height * _Y}"/>'
    yield from (_rect(s, _shade_class(s), "") for s in drawing.shades if s.role == "island")
    # A GPU's wire over those of the NICs that share its way, and slow ones over all.
    order = {"nic": 0, "uplink": 0, "pcie": 1}
    yield from map(_wire, sorted(drawing.wires, key=lambda wire: (wire.slow, order.get(wire.role, 2))))
    yield from (_wire(key.wire) for key in drawing.keys)
    for box in drawing.boxes:
        yield _box(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1, box.role, box.about)
    yield from (_rect(s, "stage", s.about) for s in drawing.shades if s.role == "stage")
    for box in drawing.boxes:
        yield from (_text(label, inside=True) for label in box.labels)
    yield from (_text(label, inside=False) for label in drawing.texts)


def _shade_class(shade: Shade) -> str:
    return f"island i{shade.number % _ISLANDS}"


def _rect(shade: Shade, role: str, about: str) -> str:
    return _box(shade.x, shade.y, shade.w, shade.h, role, about or shade.about, radius=8)


def _box(x: float, y: float, w: float, h: float, role: str, about: str, radius: int = 3) -> str:
    place = f'x="{_n(x * _X)}" y="{_n(y * _Y)}" width="{_n(w * _X)}" height="{_n(h * _Y)}" rx="{radius}"'
    return f"<rect {place}{_attributes(class_=role)}>{_element('title', about)}</rect>"


def _wire(wire: Wire) -> str:
    points = [(x * _X + _X // 2, y * _Y + _Y // 2) for x, y in _without_bends(wire.points)]
    # Of a line that wires share only the dot is the slow wire's own.
    role = f"w-{wire.role}" + (" w-slow" if wire.slow and not wire.dots else "")
    drawn = " ".join(f"{x},{y}" for x, y in points)
    about = ": ".join(filter(None, (" to ".join(wire.joins), wire.about)))
    told = f'<polyline points="{drawn}"{_attributes(class_=role)}>{_element("title", about)}</polyline>'
    dot = 'class="d late" r="6"' if wire.slow else 'class="d" r="4"'
    for x, y in wire.dots:
        told += f'<circle {dot} cx="{x * _X + _X // 2}" cy="{y * _Y + _Y // 2}"/>'
    if wire.role == "plan" and wire.joins:
        (_, y0), (x, y) = points[-2:]
        back = -9 if y > y0 else 9
        told += f'<polygon class="head" points="{x},{y} {x - 5},{y + back} {x + 5},{y + back}"/>'
    return told


def _without_bends(points: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same line without points that it passes straight."""
    kept: list[tuple[int, int]] = []
    for point in points:
        straight = len(kept) > 1 and len({kept[-2][0], kept[-1][0], point[0]}) == 1
        straight |= len(kept) > 1 and len({kept[-2][1], kept[-1][1], point[1]}) == 1
        kept[-1 if straight else len(kept) :] = [point]
    return kept


def _text(label: Label, *, inside: bool) -> str:
    role = {"slow": "late"}.get(label.role, label.role)
    x, y = label.x * _X, label.y * _Y + _Y * 0.75
    told = _attributes(
        class_=" ".join(filter(None, (role, "in" if inside else ""))),
        text_anchor="" if label.anchor == "start" else label.anchor,
    )
    return f'<text x="{_n(x)}" y="{_n(y)}"{told}>{_escaped(label.text)}</text>'


def _element(name: str, text: str) -> str:
    return f"<{name}>{_escaped(text)}</{name}>" if text else ""


def _attributes(**given: str) -> str:
    """' class="gpu"' of each that isn't empty."""
    return "".join(f' {k.rstrip("_").replace("_", "-")}="{_escaped(v)}"' for k, v in given.items() if v)


def _escaped(text: str) -> str:
    """Whatever the text holds, XML reads it as that text; what no XML may hold is gone."""
    return clean(text).translate(_ESCAPES)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
