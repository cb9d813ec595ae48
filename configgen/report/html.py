"""An audit as one self-contained page: it asks no network for anything, and needs no script to be read."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256

from configgen.audited import Audited
from configgen.comparison import Comparison
from configgen.report.cards import cards
from configgen.report.charts import facets
from configgen.report.comparison import alike_rows, difference_rows, judgement_rows, side_text
from configgen.report.drawing import draw
from configgen.report.embedded import embedded
from configgen.report.heatmap import heat_map
from configgen.report.lines import gpus_line, islands_line, measured_line
from configgen.report.plan_view import plan_view
from configgen.report.rates import rate_table, used_rows
from configgen.report.svg import svg
from configgen.templates import fill_html, part
from probe.checks.reading import expecting
from probe.curve import profiles
from probe.errors import one_line
from probe.finding import Severity
from probe.islands import fingerprint
from probe.topology import Topology
from probe.units import count, some

_MOST_CARDS = 60


def page(audited: Audited) -> str:
    """The whole page. Texts of the machine, of tools and of models are escaped, and hold no control characters."""
    survey, topology = audited.survey, audited.survey.topology
    read = profiles(survey.curves)
    picture, style, script = svg(draw(survey, audited.plan)), part("report.css"), part("report.js")
    every = cards(audited.findings, topology)
    verdict = audited.verdict[:1].upper() + audited.verdict[1:]
    return fill_html(
        "report.html.j2",
        title=f"{_hosts(topology) or gpus_line(topology)}: {audited.verdict}",
        verdict=verdict,
        status=_status(audited),
        machine=f"{gpus_line(topology)}; {islands_line(topology)}",
        facts=list(_facts(audited)),
        lab=one_line(survey.lab, 200) if survey.lab is not None else None,
        is_measured=survey.is_measured,
        is_partial=survey.is_partial,
        picture=picture,
        grave=[card for card in every if card.severity != Severity.INFO.value][:_MOST_CARDS],
        infos=[card for card in every if card.severity == Severity.INFO.value][:_MOST_CARDS],
        more_cards=max(0, len(every) - _MOST_CARDS),
        heat=heat_map(survey, read),
        facets=facets(survey, read, expecting(survey)),
        plan=plan_view(audited.plan, topology) if audited.plan is not None else None,
        changed=_changed(audited.comparison) if audited.comparison is not None else None,
        rates=rate_table(survey),
        used=used_rows(survey),
        raw=embedded(survey),
        style=style,
        script=script,
        policy=_policy([style, *re.findall(r"<style>(.*?)</style>", picture, re.DOTALL)], script),
    )


def _policy(styles: Sequence[str], script: str) -> str:
    """Nothing may be loaded, sent or framed; of scripts and styles only those that the page was written with run."""

    def told(texts: Sequence[str]) -> str:
        return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)

    return (
        f"default-src 'none'; script-src {told([script])}; style-src {told(styles)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _status(audited: Audited) -> str:
    if not audited.passes and audited.worst is not None:
        return audited.worst.value
    return "good" if audited.survey.is_measured else "unknown"


def _hosts(topology: Topology) -> str:
    names = list(dict.fromkeys(one_line(node.hostname, 60) for node in topology.nodes if node.hostname))
    return some(names, 3)


def _facts(audited: Audited) -> Iterator[tuple[str, str]]:
    topology = audited.survey.topology
    if hosts := _hosts(topology):
        yield "host" if len(topology.nodes) == 1 else "hosts", hosts
    yield "audited", audited.audited_at[:19].replace("T", " ") + " UTC"
    yield "measured", _when(audited)
    for name, values in (
        ("driver", [node.driver_version for node in topology.nodes]),
        ("CUDA", [node.cuda_version for node in topology.nodes]),
        ("virtualization", [node.virtualization for node in topology.nodes]),
    ):
        if known := list(dict.fromkeys(one_line(value, 40) for value in values if value)):
            yield name, some(known, 3)
    yield "fingerprint", fingerprint(topology)


def _when(audited: Audited) -> str:
    survey = audited.survey
    told = measured_line(survey)
    if told is None:
        return "nothing; `wirelore measure -o survey.json` measures, `wirelore audit --from survey.json` audits it"
    when = survey.measured_at[:19].replace("T", " ") + " UTC" if survey.measured_at else "at an unknown time"
    whole = f"{one_line(when, 40)}, {count(len(survey.curves), 'curve')} of {count(survey.points, 'point')}"
    return whole + (", partly: time ran out" if survey.is_partial else "")


def _changed(c: Comparison) -> dict[str, object]:
    rows, left = difference_rows(c)
    return {
        "verdict": c.verdict,
        "carries_over": c.carries_over,
        "sides": [("baseline", side_text(c.a)), ("now", side_text(c.b))],
        "notes": c.notes,
        "judgements": list(judgement_rows(c)),
        "differences": rows,
        "left": left,
        "alike": list(alike_rows(c)),
        "measure": c.measure,
    }
