"""An audit as JUnit XML for CI: a test case per code, red where the machine fails. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from configgen.audited import Audited
from configgen.report.findings import Case, Kind, kinds, title
from configgen.report.sections import machine_facts
from configgen.unchecked import unchecked
from probe.checks.codes import CODES
from probe.errors import one_line
from probe.finding import Severity

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SUITE = "wirelore.audit"


def junit(audited: Audited, *, strict: bool = False) -> str:
    """What the schemas of Ant and of Jenkins both take: one suite, its test cases with at most one failure or skipped.

    A code with a failure is red; one with warnings alone is skipped (yellow) with its text, or red where `strict`, as
    the exit code is; one with infos alone is green. What could not be checked is a skipped case of its own, and so is
    every code that only a measurement shows where there is none.
    """
    from xml.etree.ElementTree import Element, SubElement, indent, tostring

    from probe.checks.codes_measured import CODES_MEASURED
    from probe.checks.codes_run import CODES_RUN

    is_measured = audited.survey.is_measured and audited.survey.lab is None
    root = Element("testsuites")
    suite = SubElement(root, "testsuite")
    properties = SubElement(suite, "properties")
    for name, text in (*machine_facts(audited.survey), ("verdict", audited.verdict)):
        SubElement(properties, "property", name=name, value=_clean(text))
    by_code: dict[str, list[Kind]] = {code: [] for code in CODES}
    for kind in kinds(audited):
        by_code.setdefault(kind.code, []).append(kind)
    for code, found in by_code.items():
        case = _testcase(suite, code)
        if not found and (code in CODES_MEASURED or code in CODES_RUN) and not is_measured:
            SubElement(case, "skipped", message="not checked: nothing was measured on these GPUs")
        else:
            _judge(case, found, strict)
    for one in unchecked(audited.survey):
        SubElement(_testcase(suite, f"not checked: {one.what}"), "skipped", message=_clean(one.why))
    infos = [line for found in by_code.values() for kind in found if _is_info(kind) for line in _told(kind)]
    SubElement(suite, "system-out").text = "\n".join(infos)
    SubElement(suite, "system-err")
    _count(suite, audited)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _testcase(suite: Element, name: str) -> Element:
    from xml.etree.ElementTree import SubElement

    return SubElement(suite, "testcase", classname=_SUITE, name=_clean(name), time="0")


def _judge(case: Element, found: list[Kind], strict: bool) -> None:
    """At most one verdict in a test case, the graver one; its text tells all findings of the code."""
    from xml.etree.ElementTree import SubElement

    grave = [kind for kind in found if not _is_info(kind)]
    if not grave:
        return
    worst = grave[0].severity
    message = f"{title(grave[0].code)}: {grave[0].cases[0].seen}"
    if worst is Severity.FAILURE or strict:
        verdict = SubElement(case, "failure", type=worst.value, message=_clean(message))
    else:
        verdict = SubElement(case, "skipped", message=_clean(f"{worst.value}: {message}"))
    verdict.text = "\n".join(("", *(line for kind in grave for line in _told(kind)), ""))


def _told(kind: Kind) -> Iterator[str]:
    """Three to five lines for each case."""
    for case in kind.cases:
        yield f"{kind.severity.value} {kind.code}: {_places(case)}"
        yield f"  seen: {_clean(case.seen)} [{case.provenance}]"
        if case.expected is not None:
            yield f"  expected: {_clean(case.expected)}"
            yield f"  source: {_clean(case.source or '')}"
        yield f"  do: {_clean(case.cure)}"


def _places(case: Case) -> str:
    return _clean("; ".join(case.places)) if case.places else "everywhere"


def _is_info(kind: Kind) -> bool:
    return kind.severity is Severity.INFO


def _count(suite: Element, audited: Audited) -> None:
    cases = suite.findall("testcase")
    names = [node.hostname for node in audited.survey.topology.nodes if node.hostname]
    told = {
        "id": "0",
        "package": _SUITE,
        "name": "wirelore audit",
        "timestamp": audited.audited_at[:19],
        "hostname": one_line(names[0], 80) if names and one_line(names[0], 80) else "unknown",
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": "0",
    }
    for name, value in told.items():
        suite.set(name, value)


def _clean(text: str) -> str:
    """One line of characters that XML 1.0 allows: it has no way to write a control character."""
    return one_line(text, 100_000)
