"""Names and secrets in what `wirelore emit` writes for clusters: each is the same word after whoever reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_validate", reason="kubernetes-validate not installed: NO name in a manifest is checked")

import yaml
from cluster_plans import decided_case, manifests, pods
from command import environment, wirelore
from engine_plans import named
from manifest_faults import faults
from stub_engine import AWKWARD

from configgen.deploy.compose import compose_files
from configgen.deploy.service import Wishes
from configgen.deploy.slurm import slurm_files
from configgen.deploy.systemd import systemd_files
from configgen.document import encode_plan
from configgen.engines.launcher import launch_of
from probe.errors import UsageError

NAMES = [*AWKWARD, "a$$b $$(x) $$$(y)$", "y", "0x1F", "1e3", "null", "~", "a: - b", "a" * 300]


def kubelet(words: list[str]) -> list[str]:
    """Commands and arguments as a kubelet reads them: $(NAME) from the environment, $$ one $, any other $ itself."""

    def read(found: re.Match[str]) -> str:
        assert found[0][1:2] != "(", "a variable would be filled in"
        return "$"

    return [re.sub(r"\$(?:\$|\([^)]*\))?", read, word) for word in words]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [None, "lws", "kserve", "rayservice", "llm-d"])
def test_no_name_is_read_by_kubernetes(name: str, kind: str | None) -> None:
    decided = named(decided_case("pairs"), name)
    wishes = Wishes(model_claim="weights" if name.startswith("/") else None)
    if kind == "kserve" and name.startswith("/"):
        with pytest.raises(UsageError, match="--kind deployment"):
            manifests(decided, kind, wishes)
        return
    for documents in manifests(decided, kind, wishes).values():
        for document in documents:
            assert faults(document) == []
            for pod in pods(document):
                for container in pod.get("initContainers", []):
                    assert kubelet(container["args"])[-2:] == ["--", name]
    if kind == "rayservice":
        served = yaml.safe_load(manifests(decided, kind, wishes)["rayservice.yaml"][0]["spec"]["serveConfigV2"])
        (model,) = served["applications"][0]["args"]["llm_configs"]
        assert model["model_loading_config"] == {"model_id": name, "model_source": name}
    if kind == "llm-d":
        (values,) = manifests(decided, kind, wishes)["llm-d-values.yaml"]
        assert "{{" not in json.dumps([values["modelArtifacts"]["name"], values["modelArtifacts"]["uri"]])


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_read_by_compose(name: str) -> None:
    decided = named(decided_case("servers"), name)
    document = yaml.safe_load(compose_files(decided, launch_of(decided), Wishes())["compose.yaml"])
    word = document["services"]["probe-0"]["command"][-1]
    assert re.sub(r"\$\$", "", word).count("$") == 0, "a variable would be filled in"
    assert word.replace("$$", "$") == name


STUB_SRUN = """#!/bin/sh
while case "$1" in --*) true ;; *) false ;; esac; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" || exit; done
"""
STUB_WIRELORE = """#!/usr/bin/env python3
import json, os, sys
folder = sys.argv[sys.argv.index("--folder") + 1]
os.makedirs(folder)
with open(folder + "/told", "w") as file:
    json.dump(sys.argv[1:], file)
with open(folder + "/start", "w") as file:
    file.write('#!/bin/sh\\necho started "$@" > ' + folder + "/started\\n")
os.chmod(folder + "/start", 0o755)
"""


@pytest.mark.parametrize("name", [*AWKWARD, "meta-llama/Llama-3.1-405B"])
def test_the_batch_script_plans_on_every_node_and_starts_each_part(tmp_path: Path, name: str) -> None:
    decided = named(decided_case("nodes-sglang"), name)
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for program, text in (("srun", STUB_SRUN), ("wirelore", STUB_WIRELORE)):
        (stubs / program).write_text(text)
        (stubs / program).chmod(0o755)
    (tmp_path / "job.sbatch").write_text(slurm_files(decided, launch_of(decided), Wishes())["job.sbatch"])
    work = tmp_path / "work"
    work.mkdir()
    environ = environment(PATH=f"{stubs}:{os.environ['PATH']}", SLURM_JOB_ID="7", TMPDIR=str(tmp_path))
    command = ["bash", "../job.sbatch"]
    ended = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    for node in ("0", "1"):
        folder = tmp_path / "wirelore-7" / node
        told = json.loads((folder / "told").read_text())
        assert told[:3] == ["init", "--folder", str(folder)]
        assert told[-2:] == ["--", name]
        assert told[told.index("--nodes") + 1] == str(len(decided.replicas) * len(decided.replicas[0].nodes))
        assert (folder / "started").read_text() == "started --host 0.0.0.0\n"
    assert list(work.iterdir()) == [], "a name was run as a command"


@pytest.mark.parametrize("taken", ["link", "owner"])
def test_a_folder_that_somebody_else_made_first_ends_the_job(tmp_path: Path, taken: str) -> None:
    """The numbers of jobs are known beforehand, and /tmp is everybody's: what is started lies in that folder."""
    decided = decided_case("nodes")
    srun = tmp_path / "srun"
    srun.write_text(STUB_SRUN)
    srun.chmod(0o755)
    (tmp_path / "wirelore").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "wirelore").chmod(0o755)
    (tmp_path / "elsewhere").mkdir()
    if taken == "link":
        (tmp_path / "wirelore-7").symlink_to(tmp_path / "elsewhere")
    elif os.getuid() == 0:
        (tmp_path / "wirelore-7").mkdir(mode=0o777)
        os.chown(tmp_path / "wirelore-7", 4242, 4242)
    else:
        pytest.skip("only root can make a folder somebody else's: that case is NOT tried")
    script = slurm_files(decided, launch_of(decided), Wishes())["job.sbatch"]
    environ = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7", TMPDIR=str(tmp_path))
    command = ["bash", "-c", script]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "wirelore-7 is a link or not yours" in ended.stderr


def systemd_words(line: str) -> list[str]:
    """A command line of a unit, as systemd.service(5) and systemd.syntax(7) say that it is read."""
    words = []
    for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line):
        raw = re.sub(rb"\\x([0-9a-f]{2})|\\(.)", _unescaped, (quoted or plain).encode())
        words.append(raw.decode().replace("%%", "%").replace("$$", "$"))
    return words


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 16)]) if found[1] else found[2]


@pytest.mark.parametrize("name", [*AWKWARD, "%n %i 100%", "Qwen/Qwen3-32B"])
def test_no_name_is_read_by_systemd(tmp_path: Path, name: str) -> None:
    decided = named(decided_case("nodes"), name)
    files = systemd_files(decided, launch_of(decided), Wishes())
    assert len(files) == 2
    for rank, (unit, text) in enumerate(sorted(files.items())):
        (line,) = [line for line in text.splitlines() if line.startswith("ExecStartPre=")]
        assert systemd_words(line)[-2:] == ["--", name]
        assert f"\nEnvironment=WORLD_SIZE=2 RANK={rank} MASTER_ADDR=node0\n" in text
        (tmp_path / unit).write_text(text)
        if Path("/usr/bin/systemd-analyze").exists():
            command = ["systemd-analyze", "verify", str(tmp_path / unit)]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            assert unit not in ended.stderr


SECRET = "hunter2-do-not-tell"


@pytest.mark.parametrize("target", ["kubernetes", "slurm", "systemd", "compose"])
def test_no_secret_of_the_environment_is_written(tmp_path: Path, target: str) -> None:
    (tmp_path / "plan.json").write_bytes(encode_plan(decided_case("servers")))
    planted = {"HF_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "WIRELORE_TOKEN": SECRET, "MASTER_ADDR": SECRET}
    ended = wirelore("emit", "plan.json", "--target", target, "-o", "out", cwd=tmp_path, environ=planted)
    assert ended.code == 0, ended.err
    written = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert written
    assert SECRET not in "".join(written) + ended.out + ended.err


@pytest.mark.parametrize("kind", ["deployment", "lws", "kserve", "rayservice", "llm-d"])
def test_a_token_is_named_and_never_written(kind: str) -> None:
    (documents,) = manifests(decided_case("pairs"), kind, Wishes(token_secret="hub")).values()
    found = [c for pod in pods(documents) for c in [*pod.get("initContainers", []), *pod["containers"]]]
    assert len(found) >= 2
    for container in found:
        (token,) = [v for v in container["env"] if v["name"] == "HF_TOKEN"]
        assert token == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}


REFUSED = {
    "deployment-of-nodes": ("nodes", ["--target", "kubernetes", "--kind", "deployment"], "--kind lws"),
    "compose-of-nodes": ("nodes", ["--target", "compose"], "kubernetes, slurm or shell"),
    "kserve-of-sglang": ("sglang", ["--target", "kubernetes", "--kind", "kserve"], "--engine vllm"),
    "ray-with-attention-dp": ("nvlink-domain", ["--target", "kubernetes", "--kind", "rayservice"], "--kind lws"),
    "name": ("pairs", ["--target", "kubernetes", "--name", "A b"], "lower-case"),
    "namespace": ("pairs", ["--target", "kubernetes", "--namespace", "a\nb"], "lower-case"),
    "image": ("pairs", ["--target", "kubernetes", "--image", "a b"], "REGISTRY/NAME:TAG"),
    "claim": ("pairs", ["--target", "kubernetes", "--model-claim", "../x"], "lower-case"),
    "rdma": ("pairs", ["--target", "kubernetes", "--rdma", "mlx5_0"], "rdma/ib"),
    "kind-elsewhere": ("pairs", ["--target", "slurm", "--kind", "lws"], "no place for --kind"),
    "image-elsewhere": ("pairs", ["--target", "shell", "--image", "x/y"], "no place for --image"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_a_target_cannot_be_is_refused_with_a_cure(tmp_path: Path, refused: str) -> None:
    case, words, says = REFUSED[refused]
    (tmp_path / "plan.json").write_bytes(encode_plan(decided_case(case)))
    ended = wirelore("emit", "plan.json", *words, "-o", "out", cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_what_an_earlier_plan_left_is_not_applied_beside_this_one(tmp_path: Path) -> None:
    for case, code in (("pairs", 0), ("pairs", 0), ("nodes", 2)):
        (tmp_path / "plan.json").write_bytes(encode_plan(decided_case(case)))
        ended = wirelore("emit", "plan.json", "--target", "kubernetes", "-o", "out", cwd=tmp_path)
        assert ended.code == code, ended.err
    assert "deployment.yaml of another plan" in ended.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deployment.yaml", "probe.yaml"]
