"""The lab itself: links as fast as they say, faults that are faults, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import GBIT, MBIT, Lab, Node, missing, sweep

# Of 1,514 bytes on the wire TCP carries 1,448: what iperf3 counts of a link's rate.
TCP_SHARE = 1448 / 1514


@pytest.mark.parametrize("rate", [GBIT, 200 * MBIT])
@pytest.mark.usefixtures("network")
def test_a_link_carries_its_rate_in_both_directions_at_once(rate: int) -> None:
    with Lab(2, rate) as lab:
        reached = lab.iperf_bits_s(lab.nodes[0], lab.nodes[1], 2, both=True) / rate
    assert reached == pytest.approx(TCP_SHARE, rel=0.05)


@pytest.mark.usefixtures("network")
def test_a_node_has_a_name_that_nothing_resolves() -> None:
    with Lab(1) as lab:
        node = lab.nodes[0]
        assert node.run("hostname").strip() == node.hostname
        found = subprocess.run(node.inside("getent", "hosts", node.hostname), check=False, capture_output=True)
    assert found.returncode != 0


@pytest.mark.usefixtures("network")
def test_a_cut_link_carries_nothing_until_it_is_restored() -> None:
    with Lab(2, None) as lab:
        near, far = lab.nodes
        lab.cut(far)
        assert not _reaches(near, far)
        lab.restore(far)
        ends_s = time.monotonic() + 10
        while not _reaches(near, far):
            assert time.monotonic() < ends_s
        lab.cut(near)
        assert not _reaches(far, near)


def _reaches(sender: Node, receiver: Node) -> bool:
    """Whether a refused connection comes back: that takes both directions and no server."""
    knock = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 9), 0.5)\n"
        "except ConnectionRefusedError: sys.exit(0)\n"
        "except OSError: sys.exit(1)"
    )
    command = sender.inside(sys.executable, "-S", "-c", knock, receiver.address)
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.usefixtures("network")
def test_interfaces_can_be_there_without_leading_anywhere() -> None:
    with Lab(1, None) as lab:
        node = lab.nodes[0]
        lab.add_unusable(node, "eth1", up=False)
        lab.add_unusable(node, "eth2", up=True)
        assert node.interfaces() == ("lo", "eth0", "eth1", "eth2")
        lab.ipv6_loopback(node)
        told = json.loads(node.run("ip", "-json", "addr", "show", "dev", "lo"))
        assert [address["local"] for address in told[0]["addr_info"]] == ["::1"]
        assert "eth0" not in node.interfaces()


@pytest.mark.usefixtures("network")
def test_what_a_killed_run_left_is_swept_with_its_processes() -> None:
    script = (
        "import subprocess, sys\n"
        "from lab import Lab\n"
        "with Lab(1, None) as lab:\n"
        "    child = subprocess.Popen(lab.nodes[0].inside('sleep', '600'), stdout=subprocess.DEVNULL)\n"
        "    print(lab.nodes[0].name, child.pid, flush=True)\n"
        "    sys.stdin.read()"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert killed.stdout is not None
    name, child = killed.stdout.readline().decode().split()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert Path("/run/netns", name).exists()
    sweep()
    assert not Path("/run/netns", name).exists()
    ends_s = time.monotonic() + 5
    while _runs(int(child)):
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.usefixtures("network")
def test_labs_live_side_by_side() -> None:
    with Lab(1, None) as one, Lab(1, None) as other:
        assert one.nodes[0].name != other.nodes[0].name
        sweep()
        assert one.nodes[0].interfaces() == other.nodes[0].interfaces() == ("lo", "eth0")


def test_without_root_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert missing() == "only root makes network namespaces"
