"""Where a model comes from: paths, the Hugging Face cache, the built-in table, the hub; and what stops at the door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from configgen import hub
from configgen.hub import known_models, load_model
from probe.errors import ModelError

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def write(path: Path, facts: object = CONFIG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    return path


def refused(name: str, *, offline: bool = True) -> str:
    with pytest.raises(ModelError) as error:
        load_model(name, offline=offline)
    assert error.value.exit_code == 2 and error.value.cure
    text = str(error.value)
    assert text.isprintable() and len(text) < 900
    return text


# --- paths


def test_a_directory_or_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "my-model" / "config.json")
    model = load_model(str(path.parent))
    assert (model.name, model.layers) == (str(path.parent), 2), "an engine must find it again"
    assert model.source == f"config.json at {path}"
    assert load_model(str(path)).name == str(path.parent)
    assert load_model(str(write(tmp_path / "meta--tiny.json"))).name == "meta/tiny"


@pytest.mark.parametrize("name", ["sft--v2", "-m--x", "--trust-remote-code", "org--name"])
def test_a_folder_is_served_from_where_it_lies_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as somebody's repository sft/v2, nor as a flag."""
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / name / "config.json").parent
    for told in (f"./{name}", f"./{name}/", f"./{name}/config.json", str(folder)):
        assert load_model(told).name == str(folder)


@pytest.mark.parametrize("name", ["-m--x", "--x", "x--", "a--b--c", "a--..b", "two words--x", "plain"])
def test_a_file_whose_name_is_no_repository_is_served_from_where_it_lies(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"{name}.json")
    assert load_model(str(path)).name == str(path)


def test_quantisation_from_the_file_beside(tmp_path: Path) -> None:
    write(tmp_path / "m" / "config.json")
    told = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    write(tmp_path / "m" / "hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": told})
    quantization = load_model(str(tmp_path / "m")).quantization
    assert quantization is not None and (quantization.method, quantization.bits) == ("fp8", 8)


def test_unreadable_paths_are_refused(tmp_path: Path) -> None:
    def at(name: str, data: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return refused(str(path))

    assert "does not exist" in refused(str(tmp_path / "nowhere"))
    assert "does not exist" in refused("nowhere/config.json")
    assert "has no config.json" in refused(str(tmp_path))
    assert "is no JSON" in at("empty.json", b"")
    assert "is no JSON" in at("cut.json", b'{"num_hidden_layers": 3')
    assert "no UTF-8" in at("binary.json", bytes(range(256)))
    assert "no JSON object" in at("list.json", b"[1, 2]")
    assert "is no JSON" in at("digits.json", b'{"num_hidden_layers": ' + b"9" * 10_000 + b"}")
    assert "nested too deep" in at("deep.json", b'{"a":' * 200_000 + b"1" + b"}" * 200_000)
    assert "larger than 4 MiB" in at("huge.json", b" " * (4 << 20) + b"{}")
    assert "is not a file" in refused("/dev/zero")


def test_a_byte_order_mark_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert load_model(str(path)).layers == 2


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "x\x1b[31m", "a/b/c", "../../etc/passwd", "a..b/c", "-x", "ü/ü",
                                  "a" * 5000, "a" * 300, "org/" + "b" * 300])  # fmt: skip
def test_hostile_names_are_refused(name: str) -> None:
    refused(name, offline=False)


# --- the Hugging Face cache


def cached(root: Path, name: str, commit: str, facts: object = CONFIG, *, main: str | None = None) -> Path:
    repository = root / ("models--" + name.replace("/", "--"))
    if main is not None:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(main)
    return write(repository / "snapshots" / commit / "config.json", facts)


def test_the_cache_is_read_by_its_layout(empty_cache: Path) -> None:
    cached(empty_cache, "org/model", "old", CONFIG | {"num_hidden_layers": 3})
    cached(empty_cache, "org/model", "new", main="new\n")
    model = load_model("org/model", offline=True)
    assert (model.layers, model.name) == (2, "org/model")
    assert model.source.startswith("Hugging Face cache")


def test_without_a_ref_the_newest_snapshot_counts(empty_cache: Path) -> None:
    old = cached(empty_cache, "org/model", "a", CONFIG | {"num_hidden_layers": 3}, main="../../../etc")
    os.utime(old.parent, (1, 1))
    cached(empty_cache, "org/model", "b")
    assert load_model("org/model", offline=True).layers == 2


def test_the_cache_goes_before_the_table(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    assert load_model("Qwen/Qwen3-8B", offline=True).layers == 36
    cached(tmp_path / "other", "Qwen/Qwen3-8B", "c", main="c")
    assert load_model("Qwen/Qwen3-8B", offline=True).layers == 2


# --- the built-in table


@pytest.mark.parametrize("known", known_models(), ids=lambda known: known.name)
def test_every_entry_has_its_published_parameter_count(known: hub.KnownModel) -> None:
    model = load_model(known.name, offline=True)
    assert model.parameters == pytest.approx(known.parameters, rel=0.01)
    assert model.warnings == ()
    assert known.url.startswith("https://") and known.url in model.source and known.date in model.source
    assert model.max_context is not None


def test_names_of_the_table_are_unique() -> None:
    names = [n.lower() for known in known_models() for n in (known.name, *known.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "layers", "shown"),
    [
        ("llama-3.1-70b", 80, "meta-llama/Llama-3.1-70B"),
        ("Llama-3.1-70B-Instruct", 80, "meta-llama/Llama-3.1-70B-Instruct"),
        ("META-LLAMA/llama-3.3-70b-instruct", 80, "meta-llama/Llama-3.3-70B-Instruct"),
        ("deepseek-v3", 61, "deepseek-ai/DeepSeek-V3"),
        ("deepseek-r1", 61, "deepseek-ai/DeepSeek-R1"),
        ("gpt-oss-120b", 36, "openai/gpt-oss-120b"),
        ("mixtral-8x7b", 32, "mistralai/Mixtral-8x7B-v0.1"),
    ],
)
def test_names_in_any_case_and_short(name: str, layers: int, shown: str) -> None:
    model = load_model(name, offline=True)
    assert (model.layers, model.name) == (layers, shown)


@pytest.mark.parametrize(
    ("name", "gibibytes"),
    [
        ("gpt-oss-120b", 60.8),  # checkpoint size, arXiv 2508.10925, table 1
        ("gpt-oss-20b", 12.8),  # the same
        ("meta-llama/Meta-Llama-3-8B", 14.96),  # vLLM: "model weights take 14.96GiB", vllm-project/vllm pull 10511
    ],
)
def test_weight_bytes_are_those_seen(name: str, gibibytes: float) -> None:
    assert load_model(name, offline=True).weight_bytes / 2**30 == pytest.approx(gibibytes, rel=0.003)


def test_a_misspelt_name_gets_near_ones() -> None:
    assert "Did you mean llama-3.1-70b" in refused("lama-3.1-70b")
    assert "Did you mean" not in refused("zzzzzzzzzz") and "wirelore models" in refused("zzzzzzzzzz")


# --- the hub


def fake_hub(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], failure: str | None = None) -> list[str]:
    """A huggingface_hub that serves `files`, or raises an error whose class has the name `failure`."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    asked: list[str] = []
    missing = type("EntryNotFoundError", (Exception,), {})

    def download(repo: str, file: str, **_: object) -> str:
        asked.append(f"{repo} {file}")
        if failure is not None:
            raise type(failure, (Exception,), {})("https://secret/?token=1")
        if file not in files:
            raise missing(file)
        return str(files[file])

    package = types.ModuleType("huggingface_hub")
    errors = types.ModuleType("huggingface_hub.errors")

    def metadata(url: str, timeout: float) -> types.SimpleNamespace:
        path = download(*url.rsplit(" ", 1))
        asked.pop()
        return types.SimpleNamespace(size=Path(path).stat().st_size)

    package.hf_hub_download = download  # type: ignore[attr-defined]
    package.hf_hub_url = lambda repo, file: f"{repo} {file}"  # type: ignore[attr-defined]
    package.get_hf_file_metadata = metadata  # type: ignore[attr-defined]
    errors.EntryNotFoundError = missing  # type: ignore[attr-defined]
    for module in (package, errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_hub_is_asked_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = fake_hub(monkeypatch, {"config.json": write(tmp_path / "d" / "config.json")})
    assert load_model("org/unheard-of").source == "Hugging Face hub, org/unheard-of, config.json"
    assert asked == ["org/unheard-of config.json", "org/unheard-of hf_quant_config.json"]
    load_model("Qwen/Qwen3-8B")
    assert len(asked) == 2


def test_offline_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_hub(monkeypatch, {})
    assert "no model 'org/unheard-of'" in refused("org/unheard-of")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("org/unheard-of", offline=False)
    assert asked == []


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("GatedRepoError", "log in with `hf auth login`"),
        ("RepositoryNotFoundError", "no public model org/model"),
        ("ConnectTimeout", "does not answer (ConnectTimeout)"),
        ("LocalEntryNotFoundError", "does not answer"),
    ],
)
def test_failures_of_the_hub_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, failure: str, said: str) -> None:
    fake_hub(monkeypatch, {}, failure)
    text = refused("org/model", offline=False)
    assert said in text and "token" not in text


def test_a_huge_config_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b" " * (5 << 20))
    asked = fake_hub(monkeypatch, {"config.json": path})
    assert "5,242,880 bytes" in refused("org/model", offline=False)
    assert asked == []


def test_a_repository_without_config(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {})
    assert "org/model has no config.json" in refused("org/model", offline=False)


def test_the_table_needs_no_hub_client_and_little_else() -> None:
    code = (
        "import sys; from configgen.hub import load_model; load_model('llama-3.1-70b', offline=True);"
        "print(*sorted(sys.modules))"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"huggingface_hub", "torch", "difflib", "asyncio", "http", "http.client", "jinja2"} & set(modules)
