"""Where a model's config.json comes from: a path, the Hugging Face cache, the built-in table, then the hub."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configgen.model import ModelSpec
from configgen.model_config import spec_from_config
from probe.errors import ModelError, one_line

LARGEST_CONFIG_BYTES = 4 << 20
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[\w.-]{1,128}", re.ASCII)
_WEIGHTS = ("*.safetensors", "*.bin")
_TABLE = Path(__file__).with_name("models.json")
_PATH_CURE = "Give a directory with a config.json, a config.json, or a model's name; `wirelore models` lists names."


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An entry of the built-in table. `parameters` is the count its authors publish at `url`, as of `date`."""

    name: str
    aliases: tuple[str, ...]
    parameters: int
    url: str
    date: str


def load_model(name: str, *, offline: bool = False) -> ModelSpec:
    """The model of that name or path. `offline` keeps to this machine, as HF_HUB_OFFLINE=1 does.

    Raises ModelError with what to do where nothing is found or a config cannot be read.
    """
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if not name.strip() or len(name) > 4096 or "\0" in name or name != name.encode(errors="ignore").decode():
        raise ModelError(f"{one_line(name, 80)!r} is no name of a model", cure=_PATH_CURE)
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if _exists(path):
        return _from_path(path)
    if name.startswith(("/", "./", "../", "~/")) or name.endswith(".json"):
        raise ModelError(f"{one_line(name)} does not exist", cure=_PATH_CURE)
    if _REPOSITORY.fullmatch(name) is None or ".." in name:
        raise ModelError(f"{one_line(name, 80)!r} is no name of a model", cure=_PATH_CURE)
    snapshot = _cached_snapshot(name)
    if snapshot is not None:
        return _from_files(snapshot / "config.json", name, f"Hugging Face cache, {snapshot}")
    entry = _find(name)
    if entry is not None:
        source = f"built-in table ({entry['url']}, {entry['date']})"
        return spec_from_config(_config_of(entry), name=_repository(entry, name), source=source)
    if offline or "/" not in name:
        where = "the Hugging Face cache or the built-in table" if offline else "the built-in table"
        raise ModelError(f"no model {name!r} in {where}", cure=_suggestion(name))
    return _from_hub(name)


def _repository(entry: Mapping[str, Any], name: str) -> str:
    """The repository, as its authors spell it, that a name or short name of this entry means."""
    wanted = name.lower()
    repositories = [n for n in (entry["name"], *entry.get("names", ())) if "/" in n]
    meant = [n for n in repositories if wanted in (n.lower(), n.lower().rpartition("/")[2])]
    return str(meant[0] if meant else entry["name"])


def known_models() -> list[KnownModel]:
    """The built-in table, as `wirelore models` lists it."""
    return [
        KnownModel(
            e["name"], tuple(a for a in _names(e) if a != e["name"].lower()), e["parameters"], e["url"], e["date"]
        )
        for e in _table()
    ]


def read_json(path: Path) -> Mapping[str, object]:
    """A JSON object of at most 4 MiB. Raises ModelError."""
    try:
        if not path.is_file():
            raise ModelError(f"{path} is not a file", cure=_PATH_CURE)
        with path.open("rb") as file:
            data = file.read(LARGEST_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", cure="Check the path and its permissions."
        ) from None
    if len(data) > LARGEST_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {LARGEST_CONFIG_BYTES >> 20} MiB: no config.json", cure=_PATH_CURE)
    try:
        facts = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ModelError(f"{path} is no UTF-8 text", cure=_PATH_CURE) from None
    except RecursionError:
        raise ModelError(f"{path} is nested too deep", cure=_PATH_CURE) from None
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}", cure=_PATH_CURE) from None
    if not isinstance(facts, dict):
        raise ModelError(f"{path} holds no JSON object", cure=_PATH_CURE)
    return facts


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _from_path(path: Path) -> ModelSpec:
    config = path / "config.json" if path.is_dir() else path
    if not _exists(config):
        raise ModelError(f"{path} has no config.json", cure=_PATH_CURE)
    source = f"config.json at {config}"
    if any(True for suffix in _WEIGHTS for _ in config.parent.glob(suffix)):
        return _from_files(config, str(config.parent.absolute()), source)  # the engine must find the weights again
    place = config.parent if config.name == "config.json" else config
    return _from_files(config, _saved_repository(path) or str(place.absolute()), source)


def _saved_repository(path: Path) -> str | None:
    """The repository for which a file 'org--name.json' stands; a folder has the model itself, whatever its name."""
    repository = path.stem.replace("--", "/", 1)
    if path.is_dir() or "/" not in repository or "--" in repository or ".." in repository:
        return None
    return repository if _REPOSITORY.fullmatch(repository) else None


def _from_files(config: Path, name: str, source: str) -> ModelSpec:
    return spec_from_config(_with_quantization(read_json(config), config.parent), name=name, source=source)


def _with_quantization(facts: Mapping[str, object], directory: Path) -> Mapping[str, object]:
    """NVIDIA Model Optimizer tells the quantisation in a file of its own."""
    beside = directory / "hf_quant_config.json"
    if facts.get("quantization_config") or not _exists(beside):
        return facts
    return {**facts, "quantization_config": read_json(beside)}


def _cache_roots() -> Iterator[Path]:
    """Where huggingface_hub keeps its files, by its own environment variables."""
    environment = os.environ
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            yield Path(environment[variable]).expanduser()
            return
    if environment.get("HF_HOME"):
        yield Path(environment["HF_HOME"]).expanduser() / "hub"
        return
    cache = environment.get("XDG_CACHE_HOME")
    try:
        yield (Path(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"
    except RuntimeError:  # no home directory
        return


def _cached_snapshot(name: str) -> Path | None:
    """models--org--name/refs/main names the commit; without it the newest snapshot that has a config."""
    for root in _cache_roots():
        repository = root / ("models--" + name.replace("/", "--"))
        try:
            if not repository.is_dir():
                continue
            main = repository / "refs" / "main"
            commit = main.read_text("utf-8", errors="replace")[:256].strip() if main.is_file() else ""
            if _REVISION.fullmatch(commit) and (repository / "snapshots" / commit / "config.json").is_file():
                return repository / "snapshots" / commit
            found = [s for s in (repository / "snapshots").iterdir() if (s / "config.json").is_file()]
        except OSError:
            continue
        if found:
            return max(found, key=lambda snapshot: snapshot.stat().st_mtime)
    return None


def _table() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(_TABLE.read_text("utf-8"))["models"]
    return entries


def _names(entry: Mapping[str, Any]) -> list[str]:
    """Every name of an entry in lower case: whole, and without the organisation."""
    names = [entry["name"], *entry.get("names", ())]
    return list(dict.fromkeys(n.lower() for name in names for n in (name, name.rpartition("/")[2])))


def _find(name: str) -> dict[str, Any] | None:
    wanted = name.lower()
    return next((entry for entry in _table() if wanted in _names(entry)), None)


def _config_of(entry: Mapping[str, Any]) -> dict[str, object]:
    """The entry's facts, on top of those of the model that it is a variant of."""
    base = _find(entry["variant_of"]) if "variant_of" in entry else None
    return {**(_config_of(base) if base is not None else {}), **entry["config"]}


def _suggestion(name: str) -> str:
    import difflib

    names = [known for entry in _table() for known in _names(entry)]
    near = difflib.get_close_matches(name.lower()[:200], names, n=3, cutoff=0.6)
    listed = "`wirelore models` lists the names known here; a path to a config.json works too."
    return f"Did you mean {' or '.join(near)}? {listed}" if near else listed[0].upper() + listed[1:]


def _from_hub(name: str) -> ModelSpec:
    """config.json, and where it is silent on quantisation hf_quant_config.json, through huggingface_hub."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        problem = f"{name} is not on this machine, and huggingface_hub is not installed to fetch it"
        raise ModelError(problem, cure=_suggestion(name)) from None
    try:
        # The metadata first: a download without network would retry for half a minute, and has no limit on size.
        size = get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10).size
        if size is not None and size > LARGEST_CONFIG_BYTES:
            raise ModelError(f"{name}: its config.json has {size:,} bytes, too large to be one", cure=_PATH_CURE)
        config = Path(hf_hub_download(name, "config.json", etag_timeout=10))
        facts = read_json(config)
        if not facts.get("quantization_config"):
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(name, "hf_quant_config.json", etag_timeout=10)
    except ModelError:
        raise
    except Exception as error:  # the hub's clients raise a zoo: HTTP, sockets, TLS, its own
        raise _hub_error(name, error) from None
    return spec_from_config(
        _with_quantization(facts, config.parent), name=name, source=f"Hugging Face hub, {name}, config.json"
    )


def _hub_error(name: str, error: Exception) -> ModelError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        cure = "Accept its licence there and log in with `hf auth login`, or give its config.json."
        return ModelError(f"{name} is gated on the Hugging Face hub", cure=cure)
    if "RepositoryNotFoundError" in kinds:
        return ModelError(f"the Hugging Face hub has no public model {name}", cure=_suggestion(name))
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return ModelError(f"{name} has no config.json on the Hugging Face hub", cure=_PATH_CURE)
    problem = f"{name} is not on this machine and the Hugging Face hub does not answer ({type(error).__name__})"
    return ModelError(problem, cure=_suggestion(name))
