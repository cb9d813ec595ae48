"""What stands around a topology matrix in a dump: terminal codes, HTML, NIC legend, GPU lists, driver version."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probe.topology import MigInstance

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]{0,300}(?:\x07|\x1b\\)?|\x1b[()][A-Z0-9]|\x1b")
_LOST_ESCAPES = re.compile(r"(?:\^\[|\ufffd|\\u001b|\\x1b|\\033|\\e)\[[0-9;]{0,8}m|\[(?:[0-9]{1,3};){0,3}[0-9]{1,3}m")
_BREAKS = re.compile(r"<br[ \t]{0,4}/?>|</(?:tr|p|div|li|pre)>", re.IGNORECASE)
_TAGS = re.compile(
    r"</?(?:pre|code|span|td|tr|th|p|div|table|tbody|thead|b|u|em|font|details|summary)(?:\s[^<>]{0,200})?>",
    re.IGNORECASE,
)
_BLANKS = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_PIPES = re.compile("[│┃║￨]")
_TABLE_EDGE = re.compile(r"^[ \t]{0,40}\|[ \t]?", re.MULTILINE)
_NOTHING = re.compile("[\ufeff\u200b-\u200f\u202a-\u202e\u2060\u00ad]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_ENTITIES = {
    "&nbsp;": " ",
    "&#160;": " ",
    "&#xa0;": " ",
    "&#xA0;": " ",
    "&emsp;": " ",
    "&#9;": "\t",
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
}

_LEGEND = re.compile(r"\b(NIC[0-9]{1,3})[ \t]*:")
_NIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,62}[A-Za-z0-9]")
_HEADER_WORDS = ("Affinity", "CPU", "GPU", "NUMA", "ID")
_NO_NAME = re.compile(r"(?:X|IX|SYS|YS|NODE|ODE|DE|PHB|HB|PXB|XB|PIX|NV[0-9]+|V[0-9]+|(?:GPU|NIC)[0-9]*|[A-Z]{1,4})")

_GPU = re.compile(
    r"(?:^|[\s>#\]])GPU[ \t]{1,4}([0-9]{1,3}):[ \t]{1,4}([A-Za-z][A-Za-z0-9 ./+()_\-]{1,80}?)"
    r"[ \t]{0,8}(?:\(UUID:[ \t]{1,4}(\S{1,64})\))?[ \t]{0,200}$"
)
_MIG = re.compile(
    r"(?:^|[\s>#])MIG[ \t]{1,4}([0-9]{1,2}[a-z][0-9a-z.+\-]{1,20})"
    r"[ \t]{1,8}Device[ \t]{1,8}[0-9]{1,3}:[ \t]{1,4}\(UUID:[ \t]{1,4}(\S{1,90})\)"
)
_UUID = re.compile(r"GPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MIG_UUID = re.compile(r"MIG-(?:GPU-)?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?:/[0-9]{1,3}/[0-9]{1,3})?")
_DRIVER = re.compile(
    r"(?:Driver Version|driver version|NVRM version: NVIDIA UNIX x86_64 Kernel Module)"
    r"[ \t]{0,8}:?[ \t]{1,8}([0-9]{3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?)\b"
)
_CUDA = re.compile(r"CUDA Version[ \t]{0,8}:[ \t]{1,8}([0-9]{1,2}\.[0-9]{1,2})\b")


@dataclass(frozen=True, slots=True)
class ListedGpu:
    """A GPU of an `nvidia-smi -L` or collect_env list."""

    name: str | None
    uuid: str | None = None
    mig: tuple[MigInstance, ...] = ()


def clean(text: str) -> str:
    """The text as a terminal would have shown it: no escapes, markup, table pipes or unusual blanks."""
    if "\\tGPU" in text or "\\nGPU" in text:
        text = text.replace("\\r\\n", "\n").replace("\\n", "\n").replace("\\t", "\t")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    if "[" in text:
        text = _LOST_ESCAPES.sub("", text)
    if "&" in text:
        for entity, plain in _ENTITIES.items():
            text = text.replace(entity, plain)
    if "<" in text:
        text = _TAGS.sub(" ", _BREAKS.sub("\n", text))
    text = (
        text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n").replace("\v", "\n").replace("\f", "\n")
    )
    if not text.isascii():
        text = _NOTHING.sub("", _BLANKS.sub(" ", _PIPES.sub("|", re.sub("[\u0085\u2028\u2029]", "\n", text))))
    if "|" in text:
        text = _TABLE_EDGE.sub("", text).replace("|", " ")
    return _CONTROLS.sub("", text.replace("`", " "))


def nic_legend(lines: Sequence[str]) -> Mapping[str, str | None]:
    """'NIC0' -> 'mlx5_0'; None where the entry is damaged or told twice in different words."""
    legend: dict[str, str | None] = {}
    last: str | None = None
    for line in lines:
        found = list(_LEGEND.finditer(line)) if "NIC" in line else []
        if not found:
            if (
                last
                and line.strip()
                and not line.lstrip().startswith(("Legend", "$", "#", "=", "-"))
                and len(line.split()) == 1
            ):
                legend[last] = None  # the rest of a wrapped entry
            last = None
            continue
        if last and line[: found[0].start()].strip():
            legend[last] = None
        last = None
        for entry, after in zip(found, [*found[1:], None], strict=True):
            label, value = entry.group(1), line[entry.end() : after.start() if after else len(line)].strip()
            name = value if _is_name(value) else None
            legend[label] = name if legend.get(label, name) == name else None
            last = label if len(found) > 1 else None
    if lines and (found := list(_LEGEND.finditer(lines[-1]))) and not _follows(legend, found[-1].group(1)):
        legend[found[-1].group(1)] = None
    return legend


def _follows(legend: Mapping[str, str | None], label: str) -> bool:
    """Whether the last name of a text that ends in it can be whole: it goes on where the name before it left off."""
    before, name = legend.get(f"NIC{int(label[3:]) - 1}"), legend[label]
    if name is None or before is None:
        return name is not None and label == "NIC0" and name[-1].isdigit()
    numbers = [[int(n) for n in re.findall("[0-9]+", text)] for text in (name, before)]
    grows = numbers[0] != numbers[1] and all(a >= b for a, b in zip(*numbers, strict=False))
    return re.sub("[0-9]+", "#", name) == re.sub("[0-9]+", "#", before) and grows


def _is_name(value: str) -> bool:
    ends_header = any(word.endswith(value) for word in _HEADER_WORDS)
    return bool(_NIC_NAME.fullmatch(value)) and not _NO_NAME.fullmatch(value) and not ends_header


def gpu_list(text: str) -> dict[int, ListedGpu]:
    """GPUs by index from `GPU 0: NVIDIA H100 (UUID: GPU-...)` lines; a name told twice differently is None."""
    listed: dict[int, ListedGpu] = {}
    current: int | None = None
    for line in text.split("\n"):
        if len(line) > 400:
            continue
        if "GPU " in line and (found := _GPU.search(line)):
            current = int(found.group(1))
            uuid = found.group(3) if found.group(3) and _UUID.fullmatch(found.group(3)) else None
            entry, known = ListedGpu(found.group(2).strip(), uuid), listed.get(current)
            if known is None:
                listed[current] = entry
            else:
                same_uuid = uuid is None or known.uuid in (None, uuid)
                name = known.name if known.name == entry.name else None
                listed[current] = ListedGpu(name, (known.uuid or uuid) if same_uuid else None, known.mig)
        elif current is not None and (slice_ := _MIG.search(line)):
            uuid = slice_.group(2) if _MIG_UUID.fullmatch(slice_.group(2)) else None
            entry = listed[current]
            instance = MigInstance(uuid, slice_.group(1))
            if uuid is None or instance not in entry.mig:
                listed[current] = ListedGpu(entry.name, entry.uuid, (*entry.mig, instance))
        elif line.strip():
            current = None
    return listed


def versions(text: str) -> tuple[str | None, str | None]:
    """(driver version, the driver's CUDA version); None where the text does not tell, or tells two."""
    drivers, cudas = set(_DRIVER.findall(text)), set(_CUDA.findall(text))
    return drivers.pop() if len(drivers) == 1 else None, cudas.pop() if len(cudas) == 1 else None
