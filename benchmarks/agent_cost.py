"""What `wirelore agent` costs a node that it only watches: resident memory and processor time.

    benchmarks/agent_cost.py [--interval 60s] [--seconds 180] [--scrape 15]

A fake driver tells of an idle machine of eight H100; a scrape every 15 s stands in for Prometheus. Counted is
everything that the agent and the readers it starts burn between the first look and the end, beside what one look costs.
Not in it: the time that a real driver spends in its own calls. Prints one `name: value` line per figure; exits 1 above
60 MB or 0.5 % of a core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from agent_run import agent
from fake_nvml import build_fake_nvml
from fake_nvml.machines import healthy, hgx_h100

MOST_MB = 60.0
MOST_SHARE = 0.005


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--interval", default="60s", metavar="TIME")
    options.add_argument("--seconds", type=float, default=180.0)
    options.add_argument("--scrape", type=float, default=15.0, metavar="SECONDS")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "library"
        library.mkdir()
        with agent(folder, build_fake_nvml(library), healthy(hgx_h100()), interval=given.interval) as run:
            run.until(lambda: run.metric("wirelore_probe_success"))
            began_s, cpu_s, looks = time.monotonic(), run.cpu_s(), run.metric("wirelore_probes_total", result="ok") or 0
            peak_mb = 0.0
            while (gone_s := time.monotonic() - began_s) < given.seconds:
                time.sleep(min(given.scrape, given.seconds - gone_s))
                run.get("/metrics")
                peak_mb = max(peak_mb, run.rss_mib() * 1.048576)
            used_s, looks = run.cpu_s() - cpu_s, (run.metric("wirelore_probes_total", result="ok") or 0) - looks
            share = used_s / (time.monotonic() - began_s)
            code, end_s = run.end()
    print(f"interval: {given.interval}")
    print(f"looks: {looks:g}")
    print(f"rss_mb: {peak_mb:.1f}")
    print(f"cpu_s: {used_s:.2f}")
    print(f"core_percent: {share * 100:.2f}")
    print(f"stop_s: {end_s:.2f}")
    return int(peak_mb > MOST_MB or share > MOST_SHARE or code != 0)


if __name__ == "__main__":
    sys.exit(main())
