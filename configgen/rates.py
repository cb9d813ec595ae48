"""How fast one GPU reads its memory and multiplies: a survey's measured rates, else a share of the vendor's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probe.catalog import GpuFigures, gpu_figures
from probe.links import MATRIX_EFFICIENCY
from probe.measurement import Rate, Survey
from probe.statistics import median
from probe.topology import GpuRef, Provenance

MEMORY_EFFICIENCY = 0.8
"""Of the vendor's bandwidth, what kernels that read weights or a cache reach: aiconfigurator's system files
(`mem_bw_empirical_scaling_factor: 0.8` of every GPU)."""

SURVEYED_MEMORY_EFFICIENCY = 0.9
"""Of a measured read of a large buffer, what those kernels reach: 0.8 of the vendor's figure, of which a plain read
reaches about 0.9 (BabelStream on an H100: 3.0 of 3.35 TB/s)."""

_FP4_SINCE = (10, 0)
_HALF_BITS = 16

UNKNOWN_MEMORY_GBPS, UNKNOWN_TFLOPS = 900.0, 120.0
"""Of a GPU that no one named: a V100-class one (V100 data sheet), the slowest that engines still run on."""

UNCERTAINTY = {Provenance.MEASURED: 0.05, Provenance.READ: 0.1, Provenance.CATALOG: 0.15, Provenance.ASSUMED: 0.5}
"""Relative half-width of a rate by what told it. Measured: what engines' kernels differ from a benchmark's. Catalog:
aiconfigurator claims 7 to 15 % for its GEMMs. Assumed: a factor of about two either way."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the slowest GPU of a group does, in bytes/s and operations/s; `matrix` by the bits of its operands."""

    memory_bytes_per_s: float
    half_ops_per_s: float
    fp8_ops_per_s: float | None
    fp4_ops_per_s: float | None
    provenance: Provenance
    source: str

    def matrix_ops_per_s(self, bits: int, *, weights_only: bool = False) -> float:
        """Rate of products of so wide operands; weights alone that are narrow multiply at the activations' width.

        So do 4 bits where no tensor core takes them (engines run Marlin kernels there, 16-bit activations).
        """
        if weights_only or bits >= _HALF_BITS:
            return self.half_ops_per_s
        if bits <= 4:
            return self.fp4_ops_per_s or self.half_ops_per_s
        return self.fp8_ops_per_s or self.half_ops_per_s

    @property
    def uncertainty(self) -> float:
        return UNCERTAINTY[self.provenance]


def rates_of(survey: Survey, refs: Sequence[GpuRef]) -> Rates:
    """The rates that bound a group: its slowest GPU's."""
    gpus = {(g.name, _measured_key(survey, ref)): ref for ref in refs for g in [survey.topology.gpu(ref)]}
    return min((_of_gpu(survey, ref) for ref in gpus.values()), key=lambda r: (r.memory_bytes_per_s, r.half_ops_per_s))


def _measured_key(survey: Survey, ref: GpuRef) -> GpuRef | None:
    return ref if any(rate.gpu == ref for rate in survey.rates) else None


def _of_gpu(survey: Survey, ref: GpuRef) -> Rates:
    gpu = survey.topology.gpu(ref)
    found = gpu_figures(gpu.name)
    catalog = _of_catalog(found) if found is not None else _unknown(gpu.name)
    own = [rate for rate in survey.rates if rate.gpu == ref] or [
        rate for rate in survey.rates if survey.topology.gpu(rate.gpu).name == gpu.name
    ]
    return _with_measured(catalog, own) if own else catalog


def _of_catalog(figures: GpuFigures) -> Rates:
    half = (figures.bf16_tflops or figures.fp16_tflops) * 1e12 * MATRIX_EFFICIENCY
    fp8 = figures.fp8_tflops * 1e12 * MATRIX_EFFICIENCY if figures.fp8_tflops else None
    # NVIDIA Blackwell architecture brief (2024): FP4 doubles FP8's dense rate; before it, no tensor core takes FP4.
    blackwell = figures.compute_capability is not None and figures.compute_capability >= _FP4_SINCE
    return Rates(
        memory_bytes_per_s=(figures.hbm_gbps or UNKNOWN_MEMORY_GBPS) * 1e9 * MEMORY_EFFICIENCY,
        half_ops_per_s=half,
        fp8_ops_per_s=fp8,
        fp4_ops_per_s=2 * fp8 if fp8 is not None and blackwell else None,
        provenance=Provenance.CATALOG if figures.hbm_gbps else Provenance.ASSUMED,
        source=f"{figures.name}: {figures.source} ({figures.date})",
    )


def _unknown(name: str | None) -> Rates:
    return Rates(
        UNKNOWN_MEMORY_GBPS * 1e9 * MEMORY_EFFICIENCY,
        UNKNOWN_TFLOPS * 1e12 * MATRIX_EFFICIENCY,
        None,
        None,
        Provenance.ASSUMED,
        f"no figures are known of {name or 'a GPU without a name'}: a V100's rates",
    )


def _with_measured(catalog: Rates, own: Sequence[Rate]) -> Rates:
    """Measured where it was; a width that was not scales as the catalog's does."""
    memory = [rate.value for rate in own if rate.kind == "hbm_read"]
    half = _largest(own, ("bfloat16", "float16", "float32"))
    fp8 = _largest(own, ("float8_e4m3fn", "fp8", "float8"))
    scale = half / catalog.half_ops_per_s if half else 1.0
    measured_fp8 = fp8 or (catalog.fp8_ops_per_s * scale if catalog.fp8_ops_per_s else None)
    return Rates(
        median(memory) * 1e9 * SURVEYED_MEMORY_EFFICIENCY if memory else catalog.memory_bytes_per_s,
        half or catalog.half_ops_per_s,
        measured_fp8,
        2 * measured_fp8 if measured_fp8 and catalog.fp4_ops_per_s else None,
        Provenance.MEASURED if memory and half else catalog.provenance,
        "measured on this machine" if memory and half else catalog.source,
    )


def _largest(own: Sequence[Rate], dtypes: tuple[str, ...]) -> float | None:
    """The best rate over the shapes in one of these formats, operations/s: what a large product reaches."""
    for dtype in dtypes:
        values = [rate.value for rate in own if rate.kind == "gemm" and rate.dtype == dtype]
        if values:
            return max(values) * 1e12
    return None
