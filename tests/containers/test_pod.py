"""A pod of one node, as it is emitted: its engine starts with what `wirelore plan` says of that node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml.machines import Description, a100_pcie_pairs, hgx_h100, l40s_8
from machine import Install, emitted, variables, words
from pods import Data, Play, pod, with_words

MODEL = "qwen3-32b"
SECRETS = {"HF_TOKEN": "planted-1f0c", "AWS_SECRET_ACCESS_KEY": "planted-77aa", "NCCL_TOKEN": "planted-93be"}


@pytest.fixture(scope="module")
def spec(image: str, engine_image: str, tmp_path_factory: pytest.TempPathFactory) -> Data:
    (only,) = emitted(tmp_path_factory.mktemp("emitted") / "here", MODEL, "hgx-h100", (image, engine_image))
    return only


@pytest.mark.parametrize("description", [hgx_h100, a100_pcie_pairs, l40s_8])
def test_the_engine_gets_what_is_planned_here_and_twice_the_same(
    description: Callable[[], Description], spec: Data, play: Play, install: Install, tmp_path: Path
) -> None:
    node = install(description())
    processes = node.planned(tmp_path, MODEL)
    whole = with_words(spec, replicas=str(len(processes)))  # as emitted it asks for one, where its Service asks
    started = play(pod("alone", whole, more=node.volumes, **node.environment, **SECRETS, SERVERS=str(len(processes))))
    first = started.ended()
    assert first.code == 0, first.log
    assert node.last_words == first.log, "the summary is the termination message"
    planned = sorted((words(process)[1:], variables(process)) for process in processes)
    got = [(server["argv"], {n: server["environment"].get(n) for n in planned[0][1]}) for server in first.engines]
    assert got == planned, first.engine_log
    for server in first.engines:  # they hold no right, and the plan is not theirs to change
        assert server["user"] not in (0, 65532), "who it is, the pod says"
        assert set(server["capabilities"]) == {"0000000000000000"}
        assert server["no_new_privileges"]
        assert set(server["refused"].values()) == {"Read-only file system"}
        assert {"plan.json", "plan.env", "survey.json", "argv.json", "start"} <= server["plan"].keys()
        assert SECRETS.items() <= server["environment"].items(), "an engine gets what its pod is told"
    written = b"".join(started.file(name) for name in first.engines[0]["plan"])
    assert b"planted-" not in written + node.last_words.encode(), "and nothing of it is written down"
    assert started.again().engines == first.engines, "to the byte, as a node comes back after a restart"


def test_a_pod_as_it_is_emitted_starts_one_server(spec: Data, play: Play, install: Install) -> None:
    node = install(l40s_8())
    ended = play(pod("one", spec, more=node.volumes, **node.environment)).ended()
    assert ended.code == 0, ended.log
    (server,) = ended.engines
    assert "--port" not in server["argv"] or server["argv"][server["argv"].index("--port") + 1] == "8000"


def test_a_pod_in_place_of_another_has_the_same_files(spec: Data, play: Play, install: Install) -> None:
    node = install(a100_pcie_pairs())

    def hashes() -> object:
        started = play(pod("successor", spec, more=node.volumes, **node.environment))
        files = started.ended().engines[0]["plan"]
        started.remove()
        return files

    assert hashes() == hashes()


def test_other_gpus_than_the_planned_are_not_started_on(spec: Data, play: Play, install: Install) -> None:
    """The device plugin gave the engine's container others: what is left on the volume is for those of before."""
    node = install(a100_pcie_pairs())
    other = a100_pcie_pairs()
    other["uuid 3"] = "GPU-ffffffff-aaaa-bbbb-cccc-000000000003"
    other.write(node.folder / "other.nvml")
    described = pod("moved", spec, more=node.volumes, **node.environment)
    (engine,) = described["spec"]["containers"]
    engine["env"] = [e | {"value": "/driver/other.nvml"} if e["name"] == "FAKE_NVML" else e for e in engine["env"]]
    found = play(described).ended()
    assert found.code == 0, found.log
    assert (found.engines, found.engine_code) == ([], 4)
    assert "GPU 3 is not GPU-00000004-aaaa-bbbb-cccc-000000000003 any more" in found.engine_log


def test_a_pod_without_a_driver_says_so_and_starts_nothing(spec: Data, play: Play, install: Install) -> None:
    node = install(hgx_h100())
    found = play(pod("bare", spec, more=node.volumes)).ended()
    assert (found.code, found.engines) == (4, [])
    assert node.last_words.startswith("wirelore: "), found.log
    assert node.last_words in found.log


def test_a_model_that_fits_nowhere_fails_with_the_numbers(spec: Data, play: Play, install: Install) -> None:
    node = install(l40s_8())
    described = pod("tight", with_words(spec, model="llama-3.1-405b"), more=node.volumes, **node.environment)
    found = play(described).ended()
    assert (found.code, found.engines) == (3, [])
    assert "GB usable" in node.last_words


def test_a_full_volume_fails_and_leaves_no_half_of_a_plan(
    spec: Data, play: Play, install: Install, small_volume: Data
) -> None:
    node = install(hgx_h100())
    found = play(pod("full", spec, plan=small_volume, more=node.volumes, **node.environment)).ended()
    assert (found.code, found.engines) == (2, [])
    assert "No space left" in node.last_words
