"""What `wirelore emit` writes for clusters: valid for their schemas, safe by our laws, the same words after parsing."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes_validate", reason="kubernetes-validate not installed: NO manifest is checked")

import click
import yaml
from builders import dense
from cluster_plans import CASES, EVERYTHING, Manifest, decided_case, engine_of, init_of, manifests, pod_of, pods
from crd_shapes import FOLDER, SPECS, published
from engine_plans import LATENCY, named
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_faults import VERSIONS, faults

from configgen.cli.root import wirelore as root
from configgen.decide import plan
from configgen.deploy.blocks import Said, yaml_text
from configgen.deploy.compose import compose_files
from configgen.deploy.kubernetes import kubernetes_files
from configgen.deploy.service import Wishes, name_of
from configgen.deploy.slurm import slurm_files
from configgen.deploy.systemd import systemd_files
from configgen.engines.launcher import launch_of
from configgen.engines.rules import engine_traits
from configgen.hub import load_model
from configgen.plan import Limits, Plan, Site
from probe.errors import UsageError
from probe.measurement import Survey
from probe.sources.machines import machine

GOLDEN = Path(__file__).parent / "golden" / "deploy"
KINDS = (None, "deployment", "lws", "jobset", "kserve", "rayservice", "llm-d")


def has_no_kind(case: str, kind: str | None) -> bool:
    """Whether this plan can't be written so; that it then says why is a test of its own."""
    decided = decided_case(case)
    if kind == "deployment":
        return len(decided.replicas[0].nodes) > 1
    others = kind in ("kserve", "rayservice", "llm-d")
    return others and (
        decided.engine.engine != "vllm" or (kind == "rayservice" and decided.parallelism.attention_dp > 1)
    )


ALL = [(case, kind) for case in CASES for kind in KINDS if not has_no_kind(case, kind)]


@pytest.mark.parametrize("wishes", [Wishes(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize(("case", "kind"), ALL)
def test_every_manifest_is_valid_and_keeps_our_laws(case: str, kind: str | None, wishes: Wishes) -> None:
    files = manifests(decided_case(case), kind, wishes)
    assert files
    for documents in files.values():
        for document in documents:
            assert faults(document) == []


def test_the_last_four_versions_are_four() -> None:
    assert len(set(VERSIONS)) == 4


@pytest.mark.parametrize("kind", SPECS)
def test_custom_kinds_pass_the_schemas_of_their_projects(kind: str) -> None:
    schema = published(kind)
    if schema is None:
        pytest.skip(f"no CRD of {kind} in {FOLDER.name}/ (scripts/setup-crds brings it): checked by OUR reading alone")
    found = [
        document
        for case, asked in ALL
        for documents in manifests(decided_case(case), asked).values()
        for document in documents
        if document.get("kind") == kind
    ]
    assert found
    assert [error.message for document in found for error in schema.iter_errors(document)] == []


def test_each_pod_is_told_its_share_of_the_load_and_its_gpus() -> None:
    decided = decided_case("servers")
    words = init_of(manifests(decided)["deployment.yaml"][0])["args"]
    assert words[words.index("--concurrency") + 1] == str(512 // len(decided.replicas))
    assert words[words.index("--gpus-per-node") + 1] == str(decided.parallelism.gpus_per_replica)
    assert "--input-tokens" not in words, "what nobody told is not told on"


@pytest.mark.parametrize(("case", "kind"), ALL)
def test_a_server_whose_image_does_not_know_the_pods_user_is_told_a_name(case: str, kind: str | None) -> None:
    """getpass.getuser() fails without one, and with it the import of PyTorch."""
    documents = [d for texts in manifests(decided_case(case), kind).values() for d in texts]
    containers = [c for pod in pods(documents) for c in (*pod.get("initContainers", ()), *pod["containers"])]
    told = [c["env"] for c in containers if any(variable["name"] == "HF_HOME" for variable in c.get("env", ()))]
    assert told or kind == "jobset"
    assert all({"name": "USER", "value": "engine"} in env for env in told)


@pytest.mark.parametrize("case", CASES)
def test_each_group_of_pods_may_start_one_replica_and_a_job_all(case: str) -> None:
    decided = decided_case(case)
    for container in _containers(decided):
        if container["command"] == ["wirelore", "init"]:
            assert container["args"][container["args"].index("--replicas") + 1] == "1"
    text = slurm_files(decided, launch_of(decided), Wishes())["job.sbatch"]
    assert f" --replicas {len(decided.replicas)} " in text


def test_a_rollout_waits_as_long_as_an_engine_may_load() -> None:
    """Kubernetes' own ten minutes would call it failed, and with it whoever waits for the rollout, while it loads."""
    spec = manifests(decided_case("pairs"))["deployment.yaml"][0]["spec"]
    startup = engine_of({"spec": spec})["startupProbe"]
    assert spec["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"] >= 3600


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_the_command_takes(case: str) -> None:
    decided = decided_case(case)
    calls = [c["command"][1:] + c.get("args", []) for c in _containers(decided) if c["command"][0] == "wirelore"]
    assert calls
    for name, *words in calls:
        command = root.get_command(click.Context(root), name)
        if command is None:
            pytest.skip(f"there is no `wirelore {name}`: its words are NOT checked")
        told = command.make_context(name, list(words)).params
        assert told.get("model") == (decided.model.name if name == "init" else None)


def _containers(decided: Plan) -> list[Manifest]:
    documents = [document for file in manifests(decided).values() for document in file]
    return [c for pod in pods(documents) for c in [*pod.get("initContainers", []), *pod["containers"]]]


Spoil = Callable[[Manifest], None]


MISTAKES: dict[str, tuple[str, str | None, Spoil]] = {
    "wrong-key": ("pairs", None, lambda m: pod_of(m).update(runtimeClass="nvidia")),
    "wrong-type": ("pairs", None, lambda m: m["spec"].update(replicas="two")),
    "missing-selector": ("pairs", None, lambda m: m["spec"].pop("selector")),
    "missing-name": ("pairs", None, lambda m: engine_of(m).pop("name")),
    "fewer-gpus": ("pairs", None, lambda m: init_of(m).update(resources={"limits": {"nvidia.com/gpu": 1}})),
    "sidecar": ("pairs", None, lambda m: init_of(m).update(restartPolicy="Always")),
    "root": ("pairs", None, lambda m: pod_of(m)["securityContext"].update(runAsNonRoot=False)),
    "token": ("pairs", None, lambda m: pod_of(m).pop("automountServiceAccountToken")),
    "capability": ("pairs", None, lambda m: engine_of(m)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    "no-shared-memory": ("pairs", None, lambda m: engine_of(m)["volumeMounts"].pop(1)),
    "host-folder": ("pairs", None, lambda m: pod_of(m)["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    "unknown-volume": ("pairs", None, lambda m: engine_of(m)["volumeMounts"].append({"name": "x", "mountPath": "/x"})),
    "plan-writable": ("pairs", None, lambda m: engine_of(m)["volumeMounts"][0].pop("readOnly")),
    "probe-typo": ("pairs", None, lambda m: engine_of(m)["readinessProbe"].update(periodSecond=5)),
    "lws-policy": ("nodes", "lws", lambda m: m["spec"].update(startupPolicy="LeaderStarted")),
    "lws-key": ("nodes", "lws", lambda m: m["spec"].update(size=2)),
    "lws-no-workers": ("nodes", "lws", lambda m: m["spec"]["leaderWorkerTemplate"].pop("workerTemplate")),
    "lws-type": ("nodes", "lws", lambda m: m["spec"]["leaderWorkerTemplate"].update(size="2")),
    "lws-version": ("nodes", "lws", lambda m: m.update(apiVersion="leaderworkerset.x-k8s.io/v2")),
    "jobset-key": ("nodes", "jobset", lambda m: m["spec"]["replicatedJobs"][0].update(completions=2)),
    "jobset-pod": ("nodes", "jobset", lambda m: pod_of(m).update(restart="Never")),
    "kserve-word": ("nodes", "kserve", lambda m: m["spec"]["parallelism"].update(tensorParallel=8)),
    "kserve-type": ("nodes", "kserve", lambda m: m["spec"]["parallelism"].update(tensor="8")),
    "kserve-no-model": ("nodes", "kserve", lambda m: m["spec"].pop("model")),
    "kserve-data-alone": ("nvlink-domain", "kserve", lambda m: _parallelism(m).pop("dataLocal")),
    "kserve-both": ("nvlink-domain", "kserve", lambda m: _parallelism(m).update(pipeline=1)),
    "kserve-workers-uncounted": ("nodes", "kserve", lambda m: _parallelism(m).pop("pipeline")),
    "kserve-too-few": ("nodes", "kserve", lambda m: _parallelism(m).update(pipeline=1)),
    "lws-too-many": ("nodes", "lws", lambda m: m["spec"]["leaderWorkerTemplate"].update(size=3)),
    "lws-replicas": ("nodes", "lws", lambda m: m["spec"].update(replicas=1_000_001)),
    "ray-number": ("nodes", "rayservice", lambda m: _cluster(m)["headGroupSpec"]["rayStartParams"].update(x=0)),
    "ray-key": ("nodes", "rayservice", lambda m: _cluster(m)["workerGroupSpecs"][0].update(hosts=2)),
    "llm-d-key": ("nodes", "llm-d", lambda m: m["decode"]["parallelism"].update(pipeline=2)),
    "domain-type": ("nvlink-domain", "lws", lambda m: m["spec"].update(numNodes="4")),
    "domain-name": ("nvlink-domain", "lws", lambda m: m["spec"]["channel"].pop("resourceClaimTemplate")),
}


def _parallelism(manifest: Manifest) -> Manifest:
    return manifest["spec"]["parallelism"]  # type: ignore[no-any-return]


def _cluster(manifest: Manifest) -> Manifest:
    return manifest["spec"]["rayClusterConfig"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake: str) -> None:
    case, kind, spoil = MISTAKES[mistake]
    documents = next(iter(manifests(decided_case(case), kind).values()))
    manifest = copy.deepcopy(documents[-1] if kind == "kserve" else documents[0])  # behind its ComputeDomain
    assert faults(manifest) == []
    spoil(manifest)
    assert faults(manifest) != []


def test_the_init_container_outside_the_nvlink_domain_is_caught() -> None:
    manifest = copy.deepcopy(next(iter(manifests(decided_case("nvlink-domain")).values()))[1])
    assert faults(manifest) == []
    init_of(manifest)["resources"].pop("claims")
    assert len(faults(manifest)) >= 2


def test_what_the_topology_needs_is_asked_for() -> None:
    domain, group, _ = manifests(decided_case("nvlink-domain"))["leaderworkerset.yaml"]
    (claim,) = pod_of(group)["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == domain["spec"]["channel"]["resourceClaimTemplate"]["name"]
    one, *_ = manifests(decided_case("pairs"))["deployment.yaml"]
    assert "resourceClaims" not in pod_of(one)
    assert engine_of(one)["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    nodes = manifests(decided_case("nodes"), "lws", Wishes(rdma="rdma/hca=4"))["leaderworkerset.yaml"][0]
    assert engine_of(nodes)["resources"]["limits"]["rdma/hca"] == 4
    assert engine_of(nodes)["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    page = (GOLDEN.parents[2] / "docs" / "kubernetes.md").read_text()
    assert "`LimitMEMLOCK=infinity`" in page, "of a capability whoever is not root has nothing"


@pytest.mark.parametrize("kind", [None, "kserve"])
def test_members_of_an_nvlink_domain_are_put_where_it_reaches(kind: str | None) -> None:
    """The claim alone is granted in any rack, and what is no member has no claim."""
    documents = [d for texts in manifests(decided_case("nvlink-domain"), kind).values() for d in texts]
    members = [pod for pod in pods(documents) if "resourceClaims" in pod]
    assert members
    for pod in members:
        (near,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        term = near["podAffinityTerm"]
        assert term["topologyKey"] == "nvidia.com/gpu.clique"
        assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == "deepseek-v3"
        assert term["matchLabelKeys"] == ["leaderworkerset.sigs.k8s.io/group-index"], "each group by itself"
    others = [pod for case in ("nodes", "pairs") for d in manifests(decided_case(case)).values() for pod in pods(d)]
    assert not any("affinity" in pod for pod in others)


def test_nics_near_the_gpus_ask_for_rdma_unless_told_not_to() -> None:
    decided = decided_case("nodes")
    known = replace(decided, sites=tuple(Site(nics=("mlx5_0", "mlx5_1")) for _ in decided.hostnames))
    group = manifests(known, "lws")["leaderworkerset.yaml"][0]
    assert init_of(group)["resources"]["limits"]["rdma/ib"] == 2
    group = manifests(known, "lws", Wishes(rdma="rdma/hca"))["leaderworkerset.yaml"][0]
    assert init_of(group)["resources"]["limits"]["rdma/hca"] == 2
    with pytest.raises(UsageError, match="--rdma rdma/hca=N"):
        manifests(decided, "lws", Wishes(rdma="rdma/hca"))
    group = manifests(known, "lws", Wishes(rdma="none"))["leaderworkerset.yaml"][0]
    assert init_of(group)["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_engines_that_listen_to_their_machine_alone_are_told_to_listen_in_the_pod() -> None:
    for case, words in (("pairs", None), ("sglang", ["--host", "0.0.0.0"]), ("trtllm", ["--host", "0.0.0.0"])):
        manifest = manifests(decided_case(case))["deployment.yaml"][0]
        assert engine_of(manifest).get("args") == words
        assert engine_of(manifest)["readinessProbe"]["httpGet"]["port"] == (30000 if case == "sglang" else 8000)


def test_a_service_reaches_the_pods_that_answer_and_no_others() -> None:
    for case, component in (("servers", "server"), ("nodes", "leader")):
        documents = [document for file in manifests(decided_case(case)).values() for document in file]
        (front,) = [d for d in documents if d["kind"] == "Service"]
        templates = [t for d in documents for t in _templates(d)]
        chosen = [t for t in templates if front["spec"]["selector"].items() <= t["metadata"]["labels"].items()]
        assert [t["metadata"]["labels"]["app.kubernetes.io/component"] for t in chosen] == [component]
        assert all(t["spec"]["containers"][0]["ports"][0]["name"] == "http" for t in chosen)


def _templates(value: Any) -> list[Manifest]:
    if isinstance(value, list):
        return [found for item in value for found in _templates(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if set(value) == {"metadata", "spec"} and "containers" in value["spec"] else []
    return own + [found for item in value.values() for found in _templates(item)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.recursive(
        st.text(max_size=30) | st.integers() | st.booleans(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=15,
    )
)
def test_any_data_reads_back_from_yaml_as_it_was(data: Any) -> None:
    text = yaml_text({Said("told", "because\n- it: is"): data})
    assert yaml.safe_load(text) == {"told": data}
    assert all(line.isprintable() for line in text.splitlines())


@given(st.text(max_size=60))
@settings(derandomize=True, deadline=None)
def test_every_model_gets_a_name_that_kubernetes_takes(model: str) -> None:
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name_of(model))


def test_what_kserve_would_start_with_other_pods_is_refused() -> None:
    """Tensor parallelism over two nodes: KServe has no figure for their number."""
    decided = plan(
        Survey(machine("gb200-nvl72")), load_model("llama-3.1-70b", offline=True), LATENCY, engine_traits("vllm")
    )
    assert len(decided.replicas[0].nodes) == 2
    assert decided.parallelism.pp == 1
    with pytest.raises(UsageError, match="--kind lws"):
        manifests(decided, "kserve")
    assert manifests(decided, "lws")


def test_training_engines_have_no_pod() -> None:
    model = dense(layers=64, hidden=5120, heads=40, kv_heads=8, intermediate=25600, vocab=151936)
    decided = plan(Survey(machine("hgx-h100")), model, LATENCY, engine_traits("megatron"), Limits(gpus=8))
    with pytest.raises(UsageError, match="--engine vllm, sglang or trtllm"):
        kubernetes_files(decided, launch_of(decided), Wishes())


@pytest.mark.parametrize("kind", ["deployment", "llm-d", "kserve", "jobset", None])
def test_the_node_keeps_what_is_measured_where_that_is_asked_for(kind: str | None) -> None:
    folder = "/var/cache/wirelore"
    files = manifests(decided_case("pairs"), kind, Wishes(cache_host_path=folder))
    found = [pod for documents in files.values() for document in documents for pod in pods(document)]
    assert found
    for pod in found:
        measuring, *engines = [*pod.get("initContainers", []), *pod["containers"]]
        assert {"name": "measured", "hostPath": {"path": folder, "type": "Directory"}} in pod["volumes"]
        assert {"name": "measured", "mountPath": "/measured"} in measuring["volumeMounts"]
        assert {"name": "XDG_CACHE_HOME", "value": "/measured"} in measuring["env"]
        assert all("measured" not in str([e["volumeMounts"], e["env"]]) for e in engines), "the engine writes none"
    for documents in files.values():
        for document in documents:
            told = {"a folder of the node is mounted"} if list(pods(document)) else set()
            assert set(faults(document)) == told
    with pytest.raises(UsageError, match="Leave --cache-host-path away"):
        manifests(decided_case("pairs"), "rayservice", Wishes(cache_host_path=folder))


@pytest.mark.parametrize("told", ["relative", "/", "/a/../b", "/a b", "/a:b", "/$(x)", "/a/", ""])
def test_only_a_plain_folder_of_the_nodes_is_mounted(told: str) -> None:
    with pytest.raises(UsageError, match="--cache-host-path"):
        Wishes(cache_host_path=told)


def test_a_model_in_a_folder_needs_the_claim_that_holds_it() -> None:
    decided = named(decided_case("pairs"), "/srv/models/mine")
    with pytest.raises(UsageError, match="--model-claim"):
        manifests(decided)
    files = manifests(decided, None, Wishes(model_claim="weights"))
    for container in (init_of(files["deployment.yaml"][0]), engine_of(files["deployment.yaml"][0])):
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "model"]
        assert mount == {"name": "model", "mountPath": "/srv/models/mine", "readOnly": True}


def test_instances_are_asked_for_by_their_own_resource() -> None:
    decided = replace(decided_case("pairs"), uses_mig=True)
    with pytest.raises(UsageError, match="--gpu-resource"):
        manifests(decided)
    files = manifests(decided, None, Wishes(gpu_resource="nvidia.com/mig-1g.10gb"))
    assert engine_of(files["deployment.yaml"][0])["resources"] == {"limits": {"nvidia.com/mig-1g.10gb": 4}}


def test_compose_gives_each_replica_its_own_gpus_and_a_proxy_before_them() -> None:
    decided = decided_case("servers")
    files = compose_files(decided, launch_of(decided), Wishes())
    document = yaml.safe_load(files["compose.yaml"])
    services, given_out = document["services"], []
    for number in range(len(decided.replicas)):
        probe, engine = services[f"probe-{number}"], services[f"engine-{number}"]
        assert probe["deploy"] == engine["deploy"]
        given_out += engine["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        assert engine["depends_on"] == {f"probe-{number}": {"condition": "service_completed_successfully"}}
        assert [v["read_only"] for v in engine["volumes"] if v["target"] == "/plan"] == [True]
        assert (engine["cap_drop"], engine["user"]) == (["ALL"], "1000:1000")
        assert f"server engine-{number}:8000" in files["proxy.conf"]
    assert sorted(given_out) == [str(gpu) for gpu in range(8)]
    named_volumes = {v["source"] for s in services.values() for v in s["volumes"] if v["type"] == "volume"}
    assert named_volumes == set(document["volumes"])


SHOWN = {
    "deployment": ("pairs", None, Wishes()),
    "lws": ("nodes", None, replace(EVERYTHING, read_only_root=False, name=None, namespace=None)),
    "lws-nvlink-domain": ("nvlink-domain", "lws", Wishes()),
    "jobset": ("nodes", "jobset", Wishes()),
    "kserve": ("nodes", "kserve", Wishes()),
    "rayservice": ("nodes", "rayservice", Wishes()),
    "llm-d": ("nodes", "llm-d", Wishes()),
    "compose": ("servers", "compose", Wishes()),
    "slurm": ("nodes", "slurm", Wishes()),
    "systemd": ("nodes", "systemd", Wishes()),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_what_is_emitted_for_clusters_is_what_was_reviewed(shown: str) -> None:
    case, kind, wishes = SHOWN[shown]
    decided = decided_case(case)
    others = {"compose": compose_files, "slurm": slurm_files, "systemd": systemd_files}
    if kind in others:
        files = others[kind](decided, launch_of(decided), wishes)
    else:
        files = kubernetes_files(decided, launch_of(decided), wishes, kind)
    text = "\n".join(f"==> {name} <==\n{content}" for name, content in files.items())
    golden = GOLDEN / f"{shown}.txt"
    if "WRITE_GOLDEN" in os.environ:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
