"""The hardware catalog: every spelling finds its model, no relative is mistaken for it, every figure has a source."""

from __future__ import annotations

import re
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.catalog import GpuFigures, catalog_keys, gpu_figures, nvlink_gbps_per_link, pcie_gbps

GIB = 1 << 30


def figures(name: str) -> GpuFigures:
    found = gpu_figures(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tesla P100-SXM2-16GB", "p100-sxm2"),
        ("Tesla P100-PCIE-12GB", "p100-pcie-12"),
        ("Tesla V100-SXM2-16GB", "v100-sxm2-16"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32"),
        ("Tesla V100S-PCIE-32GB", "v100s-pcie"),
        ("Tesla T4", "t4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40"),
        ("A100-SXM4-80GB", "a100-sxm-80"),
        ("A100-PCIE-40GB", "a100-pcie-40"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("NVIDIA A800-SXM4-80GB", "a800-sxm-80"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L20", "l20"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "rtx-3090-ti"),
        ("rtx4090", "rtx-4090"),
        ("5090", "rtx-5090"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000-workstation"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000-max-q"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("nvidia h100 80 gb hbm3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H800", "h800-sxm"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA H20-3e", "h20-3e"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GH200 480GB", "gh200-96"),
        ("NVIDIA GH200 144G HBM3e", "gh200-144"),
        ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA B300 SXM6 AC", "b300-sxm"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA GB300", "gb300"),
        ("NVIDIA GB10", "gb10"),
        ("NVIDIA GB10 (DGX Spark)", "gb10"),
        ("AMD Instinct MI300X OAM", "mi300x"),
        ("AMD Instinct MI250X/MI250 (gfx90a:sramecc+:xnack-)", "mi250x"),
        ("  H100-SXM \n", "h100-sxm"),
    ],
)
def test_spellings(name: str, key: str) -> None:
    assert figures(name).key == key


@pytest.mark.parametrize(
    ("name", "key"),
    [("A100", "a100-sxm-40"), ("V100", "v100-sxm2-16"), ("H100", "h100-sxm"), ("A100 80GB", "a100-sxm-80")],
)
def test_an_open_name_gives_the_least_memory_then_the_first_listed(name: str, key: str) -> None:
    assert figures(name).key == key


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "NVIDIA",
        "GeForce RTX",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Quadro RTX 6000",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA L20Z",
        "GRID A100-40C",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H1000",
        "NVIDIA H100 " * 30,
        "ＮＶＩＤＩＡ Ｈ１００",
        "H100 \u202e",
        "\x1b[31m",
    ],
)
def test_what_is_not_in_the_catalog_finds_nothing(name: str | None) -> None:
    assert gpu_figures(name) is None


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_possible_name(name: str) -> None:
    found = gpu_figures(name)
    assert found is None or found.key in catalog_keys()


@pytest.mark.parametrize("key", catalog_keys())
def test_every_entry_keeps_the_laws(key: str) -> None:
    f = figures(key)
    assert f.key == key
    assert figures(f.name).key == key, "the display name finds its own entry"
    assert figures(f.name.upper()).key == key
    assert re.fullmatch(r"https://[a-z0-9.-]+/\S+", f.source)
    assert date.fromisoformat(f.date).year >= 2026
    assert 0.92 <= f.memory_bytes / (f.vendor_memory_gb * GIB) <= 1.03, "the driver keeps at most ECC's sixteenth"
    assert f.hbm_gbps is None or 100 <= f.hbm_gbps <= 20_000
    assert 10 <= f.fp16_tflops <= 5_000
    assert f.bf16_tflops in (None, f.fp16_tflops)
    assert (f.bf16_tflops is None) == (f.compute_capability is not None and f.compute_capability < (8, 0))
    assert f.fp8_tflops is None or f.bf16_tflops is None or f.fp8_tflops >= f.bf16_tflops
    assert (f.fp8_tflops is not None) == (f.compute_capability is not None and f.compute_capability >= (8, 9)) or (
        f.compute_capability is None
    )
    assert f.nvlinks is None or 0 <= f.nvlinks <= 36
    if f.nvlinks:
        assert f.nvlink_gbps is not None and 50 < f.nvlink_gbps < 1_000
    else:
        assert f.nvlink_gbps is None
    assert f.pcie_generation in (None, 3, 4, 5, 6)


def test_keys_are_unique() -> None:
    assert len(set(catalog_keys())) == len(catalog_keys())


def test_known_fabrics() -> None:
    assert figures("h100-sxm").nvlink_gbps == pytest.approx(478, abs=1)
    assert figures("a100-sxm-80").nvlink_gbps == pytest.approx(309, abs=1)
    assert figures("b200-sxm").nvlink_gbps == pytest.approx(956, abs=1)
    assert figures("rtx-3090").nvlink_gbps == pytest.approx(56.2, abs=0.1)
    assert figures("l40s").nvlinks == 0 and figures("mi300x").nvlinks is None
    assert nvlink_gbps_per_link(4.0) == figures("h100-sxm").nvlink_gbps_per_link
    assert nvlink_gbps_per_link(9.0) is None


def test_pcie_rates() -> None:
    assert pcie_gbps(1, 1) == 0.25
    assert pcie_gbps(3, 16) == pytest.approx(15.754, abs=1e-3)
    assert pcie_gbps(4, 16) == pytest.approx(31.508, abs=1e-3)
    assert pcie_gbps(5, 8) == pytest.approx(pcie_gbps(4, 16))
    assert pcie_gbps(6, 16) == 121.0
    for generation, width in ((0, 16), (8, 16), (4, 0), (4, 3), (4, -16)):
        with pytest.raises(ValueError, match="PCIe"):
            pcie_gbps(generation, width)
