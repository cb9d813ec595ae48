"""How a checkpoint's linear weights are stored: bits, scales and the modules left alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from configgen.fields import CONFIG_CURE, Fields, shown
from probe.errors import ModelError, one_line
from probe.topology import Notice, require

_MOST_GLOBS = 64


@dataclass(frozen=True)
class ModulePatterns:
    """Names of modules, as checkpoints list them: literally ('lm_head', 'model.layers.0.mlp') or with `*`.

    A literal matches where its dotted words stand next to each other in a module's name, so 'gate' means a router but
    not a 'gate_proj'. Names of the decoder's modules start at 'layers.', whatever wraps the decoder.
    """

    literals: frozenset[str] = frozenset()
    globs: tuple[str, ...] = ()

    @cached_property
    def tell_layers_apart(self) -> bool:
        """Whether one layer can differ from the next."""
        return any(c.isdigit() for p in (*self.literals, *self.globs) if "layers." in p for c in p)

    def match(self, module: str) -> bool:
        if self.literals:
            words = module.split(".")
            ends = range(len(words) + 1)
            if any(".".join(words[i:j]) in self.literals for i in ends for j in ends[i + 1 :]):
                return True
        return any(glob_matches(g, module) or glob_matches(g + ".*", module) for g in self.globs)


def glob_matches(glob: str, text: str) -> bool:
    """`*` stands for anything. Linear in the text: hostile patterns cannot make it slow, as they could a regex."""
    head, *rest = glob.split("*")
    if not rest:
        return text == head
    if not text.startswith(head):
        return False
    at = len(head)
    *middle, tail = rest
    for piece in middle:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return len(text) - at >= len(tail) and text.endswith(tail)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How linear weights are stored. Input features in a `group_size`, or (n, k) weights in a `block`, share a scale.

    `pads` marks formats whose kernels pad a rank's share to whole groups, so that groups never forbid a split.
    """

    method: str
    bits: int
    group_size: int | None = None
    block: tuple[int, int] | None = None
    scale_bytes: int = 4
    zero_point_bits: int = 0
    pads: bool = False
    ignored: ModulePatterns = field(default_factory=ModulePatterns)

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 16, f"{self.method}: a weight has 1 to 16 bits, not {self.bits}")
        require(self.group_size is None or self.group_size > 0, f"{self.method}: a group has at least one weight")
        require(self.block is None or min(self.block) > 0, f"{self.method}: a block has at least one weight")
        require(self.group_size is None or self.block is None, f"{self.method}: groups or blocks, not both")

    def weight_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a (rows = out, columns = in) weight: packed values, and per scale its bytes and its zero point."""
        if self.block is not None:
            scales = -(-rows // self.block[0]) * -(-columns // self.block[1])
        else:
            scales = rows * (1 if self.group_size is None else -(-columns // self.group_size))
        return -(-rows * columns * self.bits // 8) + scales * self.scale_bytes + -(-scales * self.zero_point_bits // 8)


def read_quantization(fields: Fields) -> tuple[Quantization | None, tuple[Notice, ...]]:
    """From `quantization_config` of config.json or from hf_quant_config.json. Raises ModelError.

    Scale widths are those of the published formats: float32 per 128x128 block (DeepSeek-V3 `weight_scale_inv`), 16 bit
    and a packed zero point per AWQ or GPTQ group, one byte per 16 (NVFP4, E4M3) or 32 weights (MXFP4, MXFP8, E8M0).
    """
    try:
        return _read(fields)
    except ValueError as error:
        raise ModelError(f"{fields.where}: {error}", cure=CONFIG_CURE) from None


_INTEGER_METHODS = frozenset(
    ("awq", "gptq", "gptq_marlin", "awq_marlin", "auto-round", "autoround", "intel/auto-round")
)


def _read(fields: Fields) -> tuple[Quantization | None, tuple[Notice, ...]]:
    modelopt = fields.fields("quantization") or fields
    method = one_line(fields.text("quant_method") or ("modelopt" if "quant_algo" in modelopt else ""), 32).lower()
    if not method and "config_groups" in fields:
        method = "compressed-tensors"
    algorithm = (modelopt.text("quant_algo") or "").lower()
    ignored, notices = _patterns(modelopt if modelopt is not fields else fields)
    bits = fields.count("bits", "w_bit", "num_bits", limit=16)
    group = _group(modelopt)

    def quantized(name: str, bits: int, **rest: Any) -> tuple[Quantization, tuple[Notice, ...]]:
        return Quantization(name, bits, ignored=ignored, **rest), tuple(notices)

    if method.startswith("modelopt") and algorithm:
        known = _modelopt(algorithm, group)
        if known is not None:
            return quantized(**known)
        notices.append(_unknown(f"modelopt {algorithm}"))
        return None, tuple(notices)
    if method in ("compressed-tensors", "compressed_tensors") or (method.startswith("modelopt") and not algorithm):
        scheme = _compressed(fields, notices)
        return (None, tuple(notices)) if scheme is None else quantized(**scheme)
    if method in ("fp8", "fbgemm_fp8", "deepseek_fp8"):
        block = fields.counts("weight_block_size", limit=1 << 20)
        if block is not None and len(block) != 2:
            raise fields.wrong("weight_block_size", block, "two whole numbers")
        return quantized("fp8", 8, block=(block[0], block[1]) if block else None)
    if method == "mxfp4":
        return quantized("mxfp4", 4, group_size=32, scale_bytes=1, pads=True)
    if method in ("nvfp4", "mxfp8"):
        return quantized(**(_modelopt(method, group) or {}))
    if method == "bitsandbytes":
        if fields.flag("load_in_4bit", "_load_in_4bit"):
            return quantized("bitsandbytes", 4, group_size=64, pads=True)
        return quantized("bitsandbytes", 8, pads=True)
    if bits is not None:
        if method not in _INTEGER_METHODS:
            notices.append(
                Notice("quantization-unknown", f"{shown(method or 'no name')}: counted like GPTQ's {bits} bits")
            )
        # AWQ, GPTQ and what stores like them (auto-round, hqq ...): a 16-bit scale and a packed zero point per group.
        return quantized(method or "integer", bits, group_size=group, scale_bytes=2, zero_point_bits=bits)
    notices.append(_unknown(method or "a method that it does not name"))
    return None, tuple(notices)


def _modelopt(algorithm: str, group: int | None) -> dict[str, Any] | None:
    if algorithm.startswith("fp8_pb"):
        return {"name": "fp8", "bits": 8, "block": (128, 128)}
    if algorithm.startswith("fp8"):
        return {"name": "fp8", "bits": 8}
    if "nvfp4" in algorithm:
        return {"name": "nvfp4", "bits": 4, "group_size": group or 16, "scale_bytes": 1}
    if algorithm.startswith("mxfp"):
        bits = 8 if algorithm.startswith("mxfp8") else 4
        return {"name": algorithm[:5], "bits": bits, "group_size": 32, "scale_bytes": 1, "pads": bits == 4}
    if algorithm.startswith("w4a"):
        return {"name": "awq", "bits": 4, "group_size": group or 128, "scale_bytes": 2}
    if algorithm.startswith("w8a"):
        return {"name": "int8", "bits": 8}
    return None


def _compressed(fields: Fields, notices: list[Notice]) -> dict[str, Any] | None:
    """The scheme of a compressed-tensors checkpoint; where groups differ, the widest one stands for all."""
    groups = fields.fields("config_groups")
    schemes = []
    for key in list(groups.facts)[:64] if groups else ():
        scheme = groups.fields(key) if groups else None
        weights = scheme.fields("weights") if scheme else None
        bits = weights.count("num_bits", limit=16) if weights else None
        if weights is not None and bits is not None:
            schemes.append((bits, weights))
    if not schemes:
        notices.append(_unknown("compressed-tensors without weights"))
        return None
    bits, weights = max(schemes, key=lambda scheme: scheme[0])
    if len({b for b, _ in schemes}) > 1:
        notices.append(
            Notice("quantization-mixed", f"weights of different widths: all are counted as {bits} bits, the widest")
        )
    group = _group(weights)
    if weights.text("type") == "float" and bits == 4:
        return _modelopt("mxfp4" if group == 32 else "nvfp4", group)
    found = weights.get("block_structure")
    if found is not None and isinstance(found[1], str):
        found = None
    block = weights.counts("block_structure", limit=1 << 20) if found is not None else None
    if weights.text("strategy") == "block":
        shape = (block[0], block[1]) if block is not None and len(block) == 2 else (128, 128)
        return {"name": "fp8", "bits": bits, "block": shape}
    name = "fp8" if weights.text("type") == "float" else f"int{bits}"
    if group is None:
        return {"name": name, "bits": bits}
    symmetric = weights.flag("symmetric") is not False
    zeros = 0 if symmetric else bits
    return {"name": name, "bits": bits, "group_size": group, "scale_bytes": 2, "zero_point_bits": zeros}


def _group(fields: Fields) -> int | None:
    """-1 and 0 mean one group per output, as AWQ and GPTQ write it."""
    size = fields.count("group_size", "q_group_size", limit=1 << 20, least=-1)
    return size if size is not None and size > 0 else None


def _unknown(method: str) -> Notice:
    message = f"quantised with {shown(method)}, which is not known here: weights are counted at full width, too large"
    return Notice("quantization-unknown", message)


def _patterns(fields: Fields) -> tuple[ModulePatterns, list[Notice]]:
    """Every spelling of "do not quantise these". Patterns of other towers (vision, audio, MTP) say nothing here."""
    names = list(fields.texts("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"))
    dynamic = fields.facts.get("dynamic")
    if isinstance(dynamic, dict):
        names += ["re:" + key[2:] for key in dynamic if isinstance(key, str) and key.startswith("-:")]
    literals, globs = set(), {}
    dropped = 0
    for name in names:
        for pattern in _globs(name[3:]) if name.startswith("re:") else [name]:
            before, cut, after = pattern.partition("layers.")
            if cut and any(word in before for word in ("vis", "audio", "mtp", "encoder", "draft")):
                continue
            pattern = ("*" if before.startswith("*") and before != "*" else "") + cut + after if cut else pattern
            if "*" in pattern:
                globs[pattern] = True
            elif pattern:
                literals.add(pattern)
        dropped += name.startswith("re:") and not _globs(name[3:])
    dropped += max(0, len(globs) - _MOST_GLOBS)
    notices = []
    if dropped:
        message = f"{dropped} patterns of unquantised modules were not understood: weights may be counted too small"
        notices.append(Notice("quantization-patterns", message))
    return ModulePatterns(frozenset(literals), tuple(globs)[:_MOST_GLOBS]), notices


def _globs(regex: str) -> list[str]:
    """The plain regular expressions that checkpoints use, as globs; [] where one is more than that.

    're:' patterns match from the name's start and leave its end open, as compressed-tensors reads them.
    """
    if len(regex) > 200:
        return []
    text = regex.removeprefix("^")
    open_end = not text.endswith("$")
    text = text.removesuffix("$").replace("\\.", ".").replace("\\d+", "*").replace("[0-9]+", "*")
    text = text.replace(".*", "*").replace(".+", "*")
    variants = [""]
    while "(" in text:
        head, _, rest = text.partition("(")
        choices, closed, text = rest.partition(")")
        if not closed or "(" in choices or text[:1] in ("?", "*", "+", "{"):
            return []
        variants = [v + head + choice for v in variants for choice in choices.removeprefix("?:").split("|")]
        if len(variants) > 32:
            return []
    variants = [v + text + ("*" if open_end else "") for v in variants]
    plain = all(c.isalnum() or c in "._-*" for v in variants for c in v)
    return variants if plain else []
