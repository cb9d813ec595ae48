"""What `wirelore measure` prints: narrow, with units, the slow and the doubtful marked, and no terminal codes."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from builders import node_of
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.report.lines import machine_line, measured_line
from configgen.report.survey import survey_lines
from configgen.report.terminal import print_survey
from probe.islands import group_shape
from probe.measurement import Curve, CurveKey, Evidence, Rate, Sample, Survey, Verification
from probe.sources.machines import machine
from probe.topology import GpuRef, GpuState, Notice, Origin, Provenance, Topology
from probe.units import figure, message_size

SIZES = tuple(1 << power for power in range(10, 28))


def curve(
    topology: Topology,
    members: tuple[GpuRef, ...],
    *,
    operation: str = "all_reduce",
    gbps: float = 100.0,
    alpha_s: float = 10e-6,
    sizes: tuple[int, ...] = SIZES,
    at_once: int = 1,
    noise: float = 0.01,
    rounds: int = 3,
    **key: object,
) -> Curve:
    chance = random.Random(str((members, operation, key)))
    told = CurveKey(operation, group_shape(topology, members, at_once), "bfloat16", "nccl", **key)  # type: ignore[arg-type]

    def times(size: int) -> tuple[float, ...]:
        return tuple((alpha_s + size / (gbps * 1e9)) * chance.lognormvariate(0, noise) for _ in range(40))

    return Curve(told, tuple(Sample(s, tuple(times(s) for _ in range(rounds))) for s in sizes), members)


def refs(*gpus: int) -> tuple[GpuRef, ...]:
    return tuple(GpuRef(0, gpu) for gpu in gpus)


def pairs(topology: Topology, slow: tuple[int, int] | None = None, noise: float = 0.01) -> tuple[Curve, ...]:
    n = len(topology.nodes[0].gpus)
    return tuple(
        curve(
            topology,
            refs(a, b),
            operation="p2p",
            direction=direction,
            noise=noise,
            gbps=25.0 if (a, b) == slow and direction == "backward" else 50.0,
        )
        for a in range(n)
        for b in range(a + 1, n)
        for direction in ("forward", "backward", "both")
    )


def text(survey: Survey) -> str:
    return "\n".join(line.text for line in survey_lines(survey))


def rows(survey: Survey, start: str) -> list[list[str]]:
    return [
        re.split(r"\s{2,}", line.text.strip()) for line in survey_lines(survey) if line.text.strip().startswith(start)
    ]


def test_a_row_tells_latency_knee_and_bandwidth_with_their_confidence() -> None:
    topology = machine("hgx-h100")
    survey = Survey(topology, (curve(topology, refs(0, 1, 2, 3)),), measured_at="2026-11-21T03:00:00+00:00")
    (head,) = rows(survey, "operation")
    (row,) = rows(survey, "all_reduce")
    told = dict(zip(head, row, strict=True))
    assert told["GPUs"] == "4"
    assert told["paths"] == "NV18"
    assert float(told["alpha us"]) == pytest.approx(10.1, rel=0.03)
    assert float(told["512 KiB us"]) == pytest.approx(15.2, rel=0.02)
    assert float(told["busbw GB/s"].lstrip(">")) == pytest.approx(150, rel=0.03), "2 (n - 1) / n of 100"
    assert told["n"] == "120"
    assert re.fullmatch(r"\d%", told["+-"])
    assert "2026-11-21T03:00" in text(survey)


def test_what_is_graph_or_through_the_host_or_many_at_once_says_so() -> None:
    topology = machine("hgx-h100")
    survey = Survey(
        topology,
        (
            curve(topology, refs(0, 1), graph=True, sizes=SIZES[:10]),
            curve(topology, refs(0, 1), at_once=4),
            curve(topology, refs(0, 1), operation="p2p", direction="both", p2p_enabled=False),
        ),
    )
    (graph,) = rows(survey, "all_reduce graph")
    assert graph[5:7] == ["-", "-"], "sizes of decode steps have no plateau"
    assert rows(survey, "p2p both no-P2P")
    assert any(row[1] == "2 x4" for row in rows(survey, "all_reduce"))


def test_of_groups_that_should_be_equal_the_slowest_counts_and_is_named() -> None:
    topology = machine("hgx-h100")
    curves = (curve(topology, refs(0, 1), at_once=2), curve(topology, refs(2, 3), at_once=2, gbps=60.0))
    survey = Survey(topology, curves)
    (row,) = rows(survey, "all_reduce")
    assert float(row[5].lstrip(">")) == pytest.approx(60, rel=0.03)
    assert re.search(r"2 groups of all_reduce: GPUs 2,3 reach 59\S* GB/s at 128 MiB, GPUs 0,1", text(survey))
    alike = Survey(topology, (curves[0], replace(curves[0], members=refs(2, 3))))
    assert "groups of" not in text(alike)


def test_a_group_with_small_sizes_alone_is_not_compared_at_large_ones() -> None:
    """The budget may end before the twin's large sizes: small messages are slow everywhere."""
    topology = machine("hgx-h100")
    whole = curve(topology, refs(0, 1))
    short = replace(curve(topology, refs(6, 7)), samples=curve(topology, refs(6, 7)).samples[:3])
    survey = Survey(topology, (whole, short))
    (row,) = rows(survey, "all_reduce")
    assert float(row[5].lstrip(">")) > 40
    assert "2 groups" not in text(survey)


def test_the_matrix_marks_the_slow_direction_of_a_pair_among_equal_paths() -> None:
    topology = machine("3090-4")
    told = text(Survey(topology, pairs(topology, slow=(1, 3))))
    matrix = [line.split() for line in told.splitlines() if re.match(r"\s+GPU\d ", line) and " X" in line]
    assert [row[0] for row in matrix] == [f"GPU{i}" for i in range(4)]
    assert matrix[3][2].endswith("*"), "from GPU 3 to GPU 1"
    assert sum(cell.endswith("*") for row in matrix for cell in row) == 1
    assert re.search(r"\* GPU 3 -> GPU 1 \(\w+\): 2\d\S* at \d+ MiB, equal paths 4\d", told)


def test_a_pair_is_compared_with_equal_paths_alone() -> None:
    """Bridged pairs are faster than the others: that makes the others no slow ones."""
    topology = machine("3090-bridges-4")
    fast = {frozenset((0, 2)), frozenset((1, 3))}
    curves = tuple(
        curve(
            topology, refs(a, b), operation="p2p", direction="forward", gbps=50.0 if frozenset((a, b)) in fast else 12.0
        )
        for a in range(4)
        for b in range(a + 1, 4)
    )
    assert "*" not in text(Survey(topology, curves))


def test_noise_marks_no_pair() -> None:
    topology = machine("3090-4")
    assert " -> " not in text(Survey(topology, pairs(topology, noise=0.3)))


def test_one_pair_makes_no_matrix() -> None:
    topology = machine("3090-4")
    assert "GPU0" not in text(Survey(topology, (curve(topology, refs(0, 1), operation="p2p", direction="forward"),)))


def test_rates_stand_per_gpu_and_a_slow_one_is_marked() -> None:
    topology = machine("3090-4")
    rates = [Rate("hbm_read", ref, 500.0 if ref.gpu == 2 else 850.0, "GB/s") for ref in refs(0, 1, 2, 3)]
    rates += [Rate("gemm", GpuRef(0, 0), 65.0, "TFLOP/s", "bfloat16", (4096, 8192, 8192))]
    told = text(Survey(topology, rates=tuple(rates)))
    assert re.search(r"hbm_read +GB/s +850 +850 +500\* +850", told)
    assert re.search(r"gemm bfloat16 4096x8192x8192 +TFLOP/s +65 +- +- +-", told)
    assert "hbm_read of GPU 2" in told


def test_rates_too_wide_for_a_line_are_summed_up() -> None:
    topology = machine("hgx-h100")
    rates = tuple(Rate("gemm", ref, 0.01234 + ref.gpu, "TFLOP/s", "float8_e4m3", (1, 2, 3)) for ref in refs(*range(8)))
    wide = tuple(replace(rate, value=12345.0, shape=(123456, 123456, 123456)) for rate in rates)
    assert "GPU7" in text(Survey(topology, rates=rates))
    told = text(Survey(topology, rates=wide))
    assert re.search(r"median +least +most", told)
    assert all(len(line) <= 100 for line in told.splitlines())


def test_gpus_of_another_model_are_no_measure() -> None:
    topology = machine("1xhgx-h100+1xl4-8")
    rates = tuple(
        Rate("hbm_read", GpuRef(node, gpu), 3000.0 if node == 0 else 250.0, "GB/s")
        for node in (0, 1)
        for gpu in range(8)
    )
    assert "*" not in text(Survey(topology, rates=rates))


def test_what_is_unstable_stands_once_with_its_cure() -> None:
    topology = machine("hgx-h100")
    curves = tuple(curve(topology, refs(*range(n)), noise=0.5, rounds=1) for n in (2, 4, 8))
    told = text(Survey(topology, curves))
    assert told.count("seen-once:") == told.count("uncertain:") == 1
    assert "Measure longer: --budget" in told
    assert "Unstable" not in text(Survey(topology, (curve(topology, refs(0, 1), noise=0.002),)))


def test_lab_figures_are_called_so_at_once() -> None:
    topology = machine("3090-4")
    survey = Survey(topology, (curve(topology, refs(0, 1)),), lab="CPU ranks of some host")
    second = survey_lines(survey)[1]
    assert second.role == "loud"
    assert second.text.strip() == "LAB FIGURES, not of these GPUs: CPU ranks of some host"


def test_wrong_data_comes_before_what_is_merely_missing() -> None:
    topology = machine("3090-4")
    survey = Survey(
        topology,
        (curve(topology, refs(0, 1)),),
        verifications=(
            Verification(GpuRef(0, 0), GpuRef(0, 1), True),
            Verification(GpuRef(0, 1), GpuRef(0, 0), False, "no answer within 10 s"),
        ),
        missing=(Notice("partly-measured", "time ran out"), Notice("wrong-data", "GPU 1 is wrong")),
        evidence=(Evidence("all_reduce", "transport", "P2P/IPC"), Evidence("all_reduce", "transport", "SHM")),
        origins=(Origin("curves", Provenance.MEASURED, "nccl on host"),),
    )
    told = text(survey)
    assert told.index("wrong-data") < told.index("partly-measured")
    assert "1 direction right, 1 WRONG" in told
    assert "GPU 1 -> GPU 0: no answer within 10 s" in told
    assert "all_reduce transport: P2P/IPC, SHM" in told
    assert "measured: nccl on host" in told


def test_a_survey_without_figures_says_so() -> None:
    assert "nothing was measured" in text(Survey(machine("hgx-h100")))


def test_a_cluster_stays_readable() -> None:
    topology = machine("64xhgx-h100")
    members = tuple(GpuRef(node, 0) for node in range(8))
    curves = [curve(topology, members)]
    curves += [curve(topology, tuple(GpuRef(node, i) for i in range(8))) for node in range(3)]
    rates = tuple(Rate("hbm_read", GpuRef(node, gpu), 3000.0, "GB/s") for node in range(64) for gpu in range(8))
    missing = tuple(Notice("rate-missing", f"number {n}", n) for n in range(64))
    told = text(Survey(topology, tuple(curves), rates=rates, missing=missing))
    assert len(told.splitlines()) < 60
    assert "NET 8 nodes" in told
    assert "and 52 more" in told


HOSTILE = st.text(max_size=80) | st.just("\x1b[31m\r\n" + "w" * 500)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_line_is_wide_or_holds_a_control_character(a: str, b: str, c: str) -> None:
    node = replace(node_of(2, 80), gpus=(GpuState(uuid="a"), GpuState(uuid="b")), hostname=a, driver_version=b)
    topology = Topology((node,))
    survey = Survey(
        topology,
        (curve(topology, refs(0, 1), sizes=SIZES[:4], library_version=a),),
        rates=(Rate(a or "x", GpuRef(0, 0), 1.0, b, dtype=c),),
        verifications=(Verification(GpuRef(0, 0), GpuRef(0, 1), False, a),),
        evidence=(Evidence(a, b, c),),
        missing=(Notice(a, b),),
        origins=(Origin("curves", Provenance.MEASURED, c),),
        lab=a,
        measured_at=b,
    )
    for line in survey_lines(survey):
        assert len(line.text) <= 100
        assert line.text.isprintable()


def test_it_prints_without_codes_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    topology = machine("3090-4")
    print_survey(Survey(topology, pairs(topology, slow=(0, 1)), lab="[bold]not markup[/]"))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "[bold]not markup[/]" in told
    assert all(len(line) <= 100 and line == line.rstrip() for line in told.splitlines())


def test_one_line_on_a_machine_says_whether_it_is_measured() -> None:
    topology = machine("3090-4")
    survey = Survey(
        topology,
        (curve(topology, refs(0, 1)),),
        origins=(Origin("curves", Provenance.MEASURED, "2026-11-20 on this machine (cache x)"),),
    )
    assert "; measured 2026-11-20 on this machine (cache x). Next: " in machine_line(topology, survey)
    assert "; not measured. Next: " in machine_line(topology, Survey(topology))
    assert measured_line(Survey(topology)) is None


@pytest.mark.parametrize(
    ("value", "told"), [(0.1234, "0.123"), (12.34, "12.3"), (999.4, "999"), (999.6, "1,000"), (123456.0, "123,456")]
)
def test_three_digits_count(value: float, told: str) -> None:
    assert figure(value) == told


@pytest.mark.parametrize(
    ("size", "told"), [(1, "1 B"), (1 << 10, "1 KiB"), (1 << 19, "512 KiB"), (3 << 29, "1.5 GiB"), (1023, "1,023 B")]
)
def test_message_sizes(size: int, told: str) -> None:
    assert message_size(size) == told
