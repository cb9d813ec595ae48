"""A stand-in for the program `helm`: the words of its command line that the documents use, done by Helm's own engine.

Started as a script, by the name `helm` on a test's PATH; what it doesn't know is refused as Helm's would be.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml


def merged(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(into[key], more[key]) for key in into.keys() & more.keys() if isinstance(into[key], dict)}
    return {**into, **more, **both}


def main() -> None:
    parser = argparse.ArgumentParser(prog="helm", allow_abbrev=False)
    verbs = parser.add_subparsers(required=True, dest="verb")
    for verb in ("install", "upgrade"):
        install = verbs.add_parser(verb, allow_abbrev=False)
        install.add_argument("name")
        install.add_argument("chart")
        install.add_argument("-f", "--values", action="append", default=[], type=Path)
        install.add_argument("--set", action="append", default=[])
        install.add_argument("--namespace", default="default")
        install.add_argument("--create-namespace", action="store_true")
    # There is never a release to upgrade: none is kept.
    verbs.choices["upgrade"].add_argument("--install", action="store_true", required=True)
    add = verbs.add_parser("repo", allow_abbrev=False).add_subparsers(required=True).add_parser("add")
    add.add_argument("name")
    add.add_argument("url")
    told = parser.parse_args()
    if told.verb == "repo":
        assert re.fullmatch(r"https://[\w./-]+/", told.url), told.url
        return
    import helm_python

    values: dict[str, Any] = {}
    for path in told.values:
        values = merged(values, yaml.safe_load(path.read_text("utf-8")))
    for expression in told.set:
        values = merged(values, helm_python.parse_set_string(expression))
    assert Path(told.chart, "Chart.yaml").is_file(), f"no chart is at {told.chart}"
    # Not kept: Helm would write it down in protobuf, which the stand-in for a cluster does not read.
    with helm_python.Config(namespace=told.namespace, storage_driver="memory") as config:
        config.install(told.chart, told.name, values, namespace=told.namespace, create_namespace=told.create_namespace)


if __name__ == "__main__":
    main()
