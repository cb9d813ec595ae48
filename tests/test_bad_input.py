"""Whatever a user gives: one line that says what is wrong and what to do, the right exit code, in bounded time and
memory, and nothing on standard output."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import WIRELORE, Ended, environment, matrix, wirelore

BAD_USAGE, NO_PLAN, NO_MACHINE = 2, 3, 4
DEADLINE_S = 2.0
PEAK_MIB = 200.0
HUNDRED_MB = 100_000_000
CURE = re.compile(
    r"(?:[.?] |: )(?:Give|See|Write|Use|Name|Ask|Run|Check|Save|Lower|Update|Install|Plan|Set|`wirelore models` lists|"
    r"Did you mean)\b[^\n]*$"
)
NEAR_H100 = ("--from", "machine:h100-1")

GPU: dict[str, Any] = {"index": 0}
DOCUMENT: dict[str, Any] = {"schema_version": 1, "fingerprint": "x", "nodes": [{"gpus": [GPU]}]}


def refused(ended: Ended, code: int, says: str) -> None:
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.err.startswith("wirelore: ")
    assert ended.err.endswith("\n")
    line = ended.err[:-1]
    assert "Traceback" not in line
    assert line.isprintable(), f"a control character reached the terminal: {line!r}"
    assert len(line) < 700
    assert re.search(says, line), line
    assert CURE.search(line), f"no word on what to do: {line}"
    assert ended.seconds < DEADLINE_S
    assert ended.peak_mib is None or ended.peak_mib <= PEAK_MIB


@pytest.fixture(scope="module")
def damage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of damaged files."""
    folder = tmp_path_factory.mktemp("damage")
    whole = matrix("X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X")
    texts = {
        "empty": "",
        "blanks": " \n\t\n" * 100,
        "prose": "The GPUs are wired with NVLink, I think.\n" * 1000,
        "header-only": whole.splitlines()[0] + "\n",
        "truncated.json": json.dumps(DOCUMENT)[:-9],
        "deep-list": "[" * 200_000,
        "deep.json": json.dumps(DOCUMENT)[:-1] + ',"x":' + "[" * 200_000 + "]" * 200_000 + "}",
        "anchors.yaml": "plan: &a\n  from: [*a, *a]\n",
        "bomb.yaml": "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{('*' + a + ',') * 9}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "deep.yaml": "plan: " + "[" * 60_000,
        "xml": '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<x>&b;</x>\n',
        "no-gpu.json": json.dumps({**DOCUMENT, "nodes": [{"gpus": []}]}),
        "no-node.json": json.dumps({**DOCUMENT, "nodes": []}),
        "other.json": '{"name": "something else"}',
        "newer.json": json.dumps({**DOCUMENT, "schema_version": 99}),
        "gpu-memory-text.json": json.dumps({**DOCUMENT, "nodes": [{"gpus": [{**GPU, "memory_bytes": "80 GB"}]}]}),
        "thousands-of-gpus.json": json.dumps({**DOCUMENT, "nodes": [{"gpus": [{"index": i} for i in range(50_000)]}]}),
        "no-layers.json": '{"model_type": "llama", "hidden_size": 4096}',
        "rows": "GPU0\t X \tSYS\tSYS\n" * 300_000,
        "newlines": "GPU0\tGPU1" + "\n" * 15_000_000,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary").write_bytes(bytes(range(256)) * 64)
    (folder / "zeros").write_bytes(b"GPU0\0GPU1\0" * 100)
    (folder / "latin-1").write_bytes("GPU0 liegt näher\n".encode("latin-1") * 50)
    (folder / "folder").mkdir()
    (folder / "no-config").mkdir()
    with (folder / "huge").open("wb") as file:
        file.truncate(HUNDRED_MB)
    with (folder / "huge.json").open("wb") as file:
        file.write(b'{"schema_version": 1, "fingerprint": "')
        for _ in range(100):
            file.write(b"a" * (HUNDRED_MB // 100))
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", "empty is empty"),
        ("blanks", "blanks is empty"),
        ("prose", "no topology"),
        ("binary", "neither UTF-8 text nor JSON"),
        ("zeros", "binary"),
        ("latin-1", "neither UTF-8 text nor JSON"),
        ("header-only", "header-only"),
        ("truncated.json", "truncated"),
        ("deep-list", "no topology"),
        ("deep.json", "nested too deep"),
        ("anchors.yaml", "no topology"),
        ("bomb.yaml", "no topology"),
        ("xml", "XML|xml"),
        ("no-gpu.json", "without GPUs"),
        ("no-node.json", "at least one node"),
        ("other.json", "no wirelore document"),
        ("newer.json", "schema version 99"),
        ("gpu-memory-text.json", r"memory_bytes|`\$\.nodes\[\.\.\.\]\.gpus"),
        ("thousands-of-gpus.json", "at most 128 GPUs"),
        ("huge", "larger than 8 MiB"),
        ("huge.json", "truncated"),
        ("rows", "rows"),
        ("newlines", "lines"),
        ("folder", "[Dd]irectory"),
        ("missing", "No such file"),
        ("m" * 300, "name too long"),
        ("machine:nope", "no synthetic machine 'nope'"),
        ("machine:", "no synthetic machine"),
        ("machine:0xhgx-h100", "no node or more than"),
        ("machine:999999xhgx-h100", "no node or more than 4096"),
        ("machine:4000xhgx-h100+97xl40s-8", "more than 4096"),
        ("machine:hgx-h100+", "no synthetic machine ''"),
    ],
    ids=lambda text: text[:30],
)
def test_a_source_that_describes_no_machine(damage: Path, name: str, says: str) -> None:
    refused(wirelore("probe", "--from", name, cwd=damage, measure=True), NO_MACHINE, says)


@pytest.mark.parametrize("name", ["empty", "binary", "no-gpu.json", "xml"])
def test_plan_refuses_it_in_the_same_words(damage: Path, name: str) -> None:
    by_plan = wirelore("plan", "llama-3.1-8b", "--from", name, "--format", "flags", cwd=damage)
    refused(by_plan, NO_MACHINE, name)
    assert by_plan.err == wirelore("probe", "--from", name, cwd=damage).err


def test_a_matrix_that_ends_early_leaves_paths_unknown_and_says_so(damage: Path) -> None:
    (damage / "cut").write_text("\n".join(matrix("X NV4 SYS", "NV4 X SYS", "SYS SYS X").splitlines()[:2]))
    ended = wirelore("probe", "--from", "cut", "--format", "json", cwd=damage)
    told = json.loads(ended.data())
    assert {(p["a"], p["b"]): p["kind"] for p in told["nodes"][0]["paths"]} == {
        (0, 1): "NVLINK",
        (0, 2): "SYS",
        (1, 2): "UNKNOWN",
    }
    assert "rows-missing" in {w["code"] for w in told["warnings"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "-"], "standard input is empty"),
        (["--from", "-", "--from", "-"], "can be read once"),
        (["--gpu-memory", "nonsense", *NEAR_H100], "no amount of memory"),
        (["--gpu-memory", "0", *NEAR_H100], "no possible amount"),
        (["--gpu-memory", "24576", *NEAR_H100], "no unit and would be GiB. Name the unit: 24576B or 24576MiB"),
        (["--gpu-memory", "9" * 80 + "TiB", *NEAR_H100], "amount"),
        (["--gpu-memory", "24GiB,24GiB", *NEAR_H100], "2 amounts for 1 GPU"),
        (["--gpu-memory", ",", *NEAR_H100], "no amount of memory"),
        (["--gpu-model", "Warp 9", *NEAR_H100], "not in the catalog"),
        (["--objective", "cheap"], "objective"),
        (["--format", "svg"], "format"),
        (["--gpus", "0"], "gpus"),
        (["--gpus", "-3"], "gpus"),
        (["--gpus", "1e3"], "gpus"),
        (["--nodes", ""], "nodes"),
        (["--input-tokens", "99999999999"], "input-tokens"),
        (["--input-tokens", "900000000", *NEAR_H100], "context"),
        (["--concurrency", "many"], "concurrency"),
        (["--max-ttft", "0"], "max-ttft"),
        (["--max-ttft", "nan"], "max-ttft"),
        (["--max-tpot", "inf"], "max-tpot"),
        (["--max-tpot", "-1"], "max-tpot"),
        (["--engine", "vllm@0.1"], "laws of vllm@0.1"),
        (["--engine", "abacus"], "not supported"),
        (["--engine", ""], "engine"),
        (["--nope"], "--nope"),
        (["surplus"], "surplus"),
        (["-o", "nowhere/plan.json", *NEAR_H100], "cannot write"),
        (["-o", "/proc/plan.json", *NEAR_H100], "cannot write"),
        (["-o", "folder", *NEAR_H100], "cannot write"),
        (["-o", ".", *NEAR_H100], "cannot write"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_an_option_that_makes_no_sense(damage: Path, arguments: list[str], says: str) -> None:
    code = NO_MACHINE if arguments == ["--from", "-"] else BAD_USAGE
    before = sorted(p.name for p in damage.iterdir())
    refused(wirelore("plan", "llama-3.1-8b", *arguments, cwd=damage), code, says)
    assert sorted(p.name for p in damage.iterdir()) == before, "no temporary file is left"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "nope"),
        (["--nope"], "--nope"),
        (["plan"], "MODEL"),
        (["schema", "nope"], "nope"),
        (["emit"], "PLAN"),
        (["emit", "missing"], "No such file"),
        (["emit", "folder"], "[Dd]irectory"),
        (["emit", "empty"], "no plan"),
        (["emit", "binary"], "no plan"),
        (["emit", "deep.json"], "nested too deep"),
        (["emit", "huge"], "larger than 64 MiB"),
        (["emit", "no-gpu.json"], "no plan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_cannot_be_run(damage: Path, arguments: list[str], says: str) -> None:
    refused(wirelore(*arguments, cwd=damage, measure=True), BAD_USAGE, says)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("no-such-model", "no model 'no-such-model'"),
        ("nobody/no-such-model", "no model 'nobody/no-such-model'"),
        ("llama-3.1-9b", "Did you mean"),
        ("", "no name of a model"),
        ("../../etc/passwd\n", "does not exist"),
        ("a/b/c", "no name of a model"),
        ("m" * 5000, "no name of a model"),
        ("./missing", "does not exist"),
        ("./no-config", "no config.json"),
        ("./no-layers.json", "num_hidden_layers"),
        ("./empty", "JSON"),
        ("./binary", "JSON|UTF-8"),
        ("./deep.json", "nested too deep|num_hidden_layers"),
        ("./huge", "larger than 4 MiB"),
    ],
    ids=lambda text: text.strip()[:20],
)
def test_a_model_that_is_none(damage: Path, model: str, says: str) -> None:
    ended = wirelore("plan", model, "--offline", *NEAR_H100, cwd=damage, measure=True)
    refused(ended, BAD_USAGE, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("anchors.yaml", "aliases"),
        ("bomb.yaml", "aliases"),
        ("deep.yaml", "nested too deep"),
        ("deep-list", "larger than 64 KiB"),
        ("binary", "no readable YAML"),
        ("latin-1", "no readable YAML"),
        ("huge", "larger than 64 KiB"),
        ("folder", "[Dd]irectory"),
        ("missing", "No such file"),
        ("xml", "no options|no readable YAML"),
        ("plan", "no options"),
        ("- plan", "no options"),
        ("plan: [gpus, 4]", "no options"),
        ("plna: {gpus: 4}", "no command of wirelore: plna"),
        ("plan: {gpsu: 4}", "no option of `wirelore plan`: gpsu"),
        ("plan: {gpus: [4]}", "gpus of `wirelore plan` is no single value"),
        ("plan: {gpus: four}", "gpus"),
        ("plan: {engine: !!python/object/apply:os.system [id]}", "no readable YAML"),
    ],
    ids=lambda text: text[:30],
)
def test_a_configuration_that_cannot_be_used(damage: Path, text: str, says: str) -> None:
    name = text
    if ":" in text or text.startswith("- ") or text == "plan":
        name = "options.yaml"
        (damage / name).write_text(text + "\n")
    ended = wirelore("--config", name, "plan", "llama-3.1-8b", *NEAR_H100, cwd=damage, measure=True)
    refused(ended, BAD_USAGE, says)


def test_no_permission(damage: Path) -> None:
    closed = damage / "closed"
    closed.write_text("")
    closed.chmod(0)
    launcher: list[str] = []
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        launcher = [setpriv or "", "--bounding-set=-dac_override,-dac_read_search"]
        if setpriv is None or subprocess.run([*launcher, "true"], check=False, capture_output=True).returncode:
            pytest.skip("root without setpriv may read everything: NOT tested that a closed file is refused")
    for arguments, code in (
        (["probe", "--from", "closed"], NO_MACHINE),
        (["plan", "./closed", *NEAR_H100], BAD_USAGE),
        (["emit", "closed"], BAD_USAGE),
        (["--config", "closed", "machines"], BAD_USAGE),
    ):
        refused(wirelore(*arguments, cwd=damage, before=launcher), code, "Permission denied")


def test_machines_that_share_some_gpus_but_not_all(damage: Path) -> None:
    pair = [{"a": 0, "b": 1, "kind": "SYS"}]
    for name, uuids in (("one.json", ["GPU-1"]), ("again.json", ["GPU-1"]), ("two.json", ["GPU-1", "GPU-2"])):
        gpus = [{**GPU, "index": i, "uuid": uuid} for i, uuid in enumerate(uuids)]
        node = {"gpus": gpus, "paths": pair if len(gpus) == 2 else []}
        (damage / name).write_text(json.dumps({**DOCUMENT, "nodes": [node]}))
    refused(wirelore("probe", "--from", "one.json", "--from", "two.json", cwd=damage), BAD_USAGE, "share a GPU")
    same = wirelore("probe", "--from", "one.json", "--from", "again.json", "--format", "json", cwd=damage).data()
    assert len(json.loads(same)["nodes"]) == 1


def test_no_legal_plan_names_the_law() -> None:
    refused(wirelore("plan", "llama-3.1-405b", "--from", "machine:t4-4"), NO_PLAN, "no legal plan .* needs .* GB")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: NOT tested what a full disk does")
def test_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*WIRELORE, "machines"], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False, text=True
        )
    assert ended.returncode == BAD_USAGE
    assert re.fullmatch(r"wirelore: [^\n]*No space left on device[^\n]*\n", ended.stderr)


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [*WIRELORE, "machines"], stdout=writing, stderr=subprocess.PIPE, env=environment(), check=False
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_interrupt_is_no_bug(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = subprocess.Popen(
        [*WIRELORE, "probe", "--from", "fifo"], cwd=tmp_path, stderr=subprocess.PIPE, env=environment(), text=True
    )
    with (tmp_path / "fifo").open("w"):  # opens when the other end reads
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err.strip()) == (130, "wirelore: interrupted")


HOSTILE = "\x1b[31mred\x1b]0;title\x07\r\n\x08\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["--config", HOSTILE, "machines"],
        ["plan", HOSTILE, *NEAR_H100],
        ["plan", f"./{HOSTILE}", *NEAR_H100],
        ["plan", "llama-3.1-8b", "--engine", HOSTILE],
        ["plan", "llama-3.1-8b", "--objective", HOSTILE],
        ["plan", "llama-3.1-8b", "--gpus", HOSTILE],
        ["plan", "llama-3.1-8b", "--max-ttft", HOSTILE],
        ["plan", "llama-3.1-8b", "--from", HOSTILE],
        ["plan", "llama-3.1-8b", "--from", f"machine:{HOSTILE}"],
        ["plan", "llama-3.1-8b", "--gpu-memory", HOSTILE, *NEAR_H100],
        ["plan", "llama-3.1-8b", "--gpu-model", HOSTILE, *NEAR_H100],
        ["probe", "-o", f"nowhere/{HOSTILE}", *NEAR_H100],
        ["emit", HOSTILE],
    ],
    ids=lambda arguments: " ".join(a for a in arguments if HOSTILE not in a),
)
def test_escape_sequences_in_an_argument_never_reach_the_terminal(arguments: list[str], tmp_path: Path) -> None:
    ended = wirelore(*arguments, cwd=tmp_path)
    refused(ended, ended.code, "red|title")
    assert ended.code in (BAD_USAGE, NO_MACHINE)


def hostile_document() -> bytes:
    """A topology in which every text that a person could have written is hostile."""
    gpu = {
        "name": HOSTILE, "uuid": HOSTILE, "pci_bus_id": HOSTILE, "serial": HOSTILE, "cpu_affinity": HOSTILE,
        "memory_bytes": 80 << 30, "nearest_nics": [HOSTILE],
        "mig_instances": [], "fabric": {"state": "completed", "cluster_uuid": HOSTILE, "clique_id": 1},
    }  # fmt: skip
    lost = {**gpu, "index": 1, "uuid": f"{HOSTILE}1", "status": "lost", "status_reason": HOSTILE}
    node = {
        "gpus": [{**gpu, "index": 0}, lost],
        "nics": [{"name": HOSTILE, "label": HOSTILE, "state": HOSTILE, "link_layer": HOSTILE}],
        "paths": [{"a": 0, "b": 1, "kind": "SYS", "asymmetric": {"a_to_b": HOSTILE, "b_to_a": f"{HOSTILE}1"}}],
        "nic_paths": [{"gpu": g, "nic": HOSTILE, "kind": "PIX"} for g in (0, 1)],
        "hostname": HOSTILE, "driver_version": HOSTILE, "cuda_version": HOSTILE, "virtualization": HOSTILE,
    }  # fmt: skip
    told = {
        "schema_version": 1, "fingerprint": HOSTILE, "nodes": [node],
        "warnings": [{"code": HOSTILE, "message": HOSTILE}],
        "provenance": [{"fact": HOSTILE, "provenance": "read", "source": HOSTILE}],
    }  # fmt: skip
    return json.dumps(told).encode()


def clean(text: str) -> None:
    for line in text.splitlines():
        assert line.isprintable(), f"a control character reached the terminal: {line!r}"


def on_terminal(*arguments: str, cwd: Path) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*WIRELORE, *arguments], cwd=cwd, stdout=theirs, env=environment(TERM="xterm"))
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)
    assert process.wait(timeout=10) == 0
    return shown.decode()


def test_escape_sequences_in_a_topology_never_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "topology.json").write_bytes(hostile_document())
    (tmp_path / "second.json").write_bytes(hostile_document().replace(b'"uuid": "', b'"uuid": "2'))
    model = tmp_path / f"model{HOSTILE}"
    model.mkdir()
    layers = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
    config = {**layers, "architectures": [HOSTILE], "intermediate_size": 14336, "vocab_size": 32000}
    (model / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}))
    (model / "model.safetensors").touch()
    for more in ([], ["--from", "second.json"]):
        for arguments in (["probe"], ["plan", str(model), "--explain"]):
            ended = wirelore(*arguments, "--from", "topology.json", *more, cwd=tmp_path)
            clean(ended.data())
            clean(ended.err)
    shown = on_terminal("plan", str(model), "--from", "topology.json", "--explain", cwd=tmp_path)
    assert "\x1b[" in shown, "a terminal gets colours"
    clean(re.sub(r"\x1b\[[0-9;]*m", "", shown))
    wirelore("plan", str(model), "--from", "topology.json", "-o", "plan.json", cwd=tmp_path).data()
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["model"]["name"] == str(model), "the file keeps what is, exactly"
    clean(wirelore("emit", "plan.json", "--target", "flags", cwd=tmp_path).err)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]><system><cpu numaid="&c;"/></system>', "entities"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><nvidia_smi_log>&b;</nvidia_smi_log>', "entities"),
        ('<?xml version="1.0"?><nvidia_smi_log><gpu id="0"><uuid>GPU-1</uuid>', "no whole XML"),
        ("<topology>" + "<object>" * 3000, "nested"),
        ('<system version="1">' + "<cpu/>" * 190_000 + "</system>", "elements"),
        ('<?xml version="1.0" encoding="Nonsense"?><recipe/>', "no topology that can be read"),
    ],
    ids=["bomb", "external", "cut", "deep", "wide", "other"],
)
def test_xml_that_harms_or_says_nothing_is_refused_soon(damage: Path, text: str, says: str) -> None:
    (damage / "hostile.xml").write_text(text)
    ended = wirelore("probe", "--from", "hostile.xml", cwd=damage, measure=True)
    refused(ended, NO_MACHINE, says)
    assert ended.seconds < 1.5  # the bar is 1 s on a machine that does nothing else


def test_100_megabytes_of_xml_are_refused_soon(damage: Path) -> None:
    with (damage / "huge.xml").open("wb") as file:
        file.write(b"<nvidia_smi_log>")
        file.truncate(100_000_000)
    ended = wirelore("probe", "--from", "huge.xml", cwd=damage, measure=True)
    refused(ended, NO_MACHINE, "larger than 8 MiB")
    assert ended.seconds < 1.5
