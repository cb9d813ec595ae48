"""A machine as a file: what its driver and host told, replayed by `--from`, fit for a public issue by default."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from probe.errors import SourceError
from probe.sources.host import HostFacts, read_host, with_host
from probe.sources.host_state import HostState, read_host_state, with_host_state
from probe.sources.nvml import read_nvml_facts, require_gpus
from probe.sources.nvml_facts import Facts, Key, Reading
from probe.sources.nvml_topology import topology_from_facts
from probe.store import to_json
from probe.topology import Topology

RECORD_VERSION = 1
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")
"""The variables that decide which GPUs are seen; no other is ever recorded."""

_UUID = re.compile(r"\b(GPU|MIG)-[0-9A-Fa-f][0-9A-Fa-f-]{0,35}")
_HARDWARE_NAME = re.compile(r"\b([a-z]{2,5}x)([0-9A-Fa-f]{12}(?:[0-9A-Fa-f]{4})?)\b")
_ADDRESS = re.compile(
    r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b|\b(?:[0-9A-Fa-f]{2}[:-]){5,19}[0-9A-Fa-f]{2}\b"
    r"|(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:.])"
)
"""IPv4, MAC and GUID bytes, IPv6 and GUID words; a PCI address has two colons and a dot, and is left alone."""
_HOME = re.compile(r"/(?:home|Users|root)(?:/[^\s:/]+)?")
_PLAIN_WORD = 4
"""Host names of fewer letters are replaced as whole words only."""
_CURE = "Give what `wirelore probe --record FILE` wrote, unchanged."


class Fact(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer of the driver, as the reader told it: a value, or the driver's error code and its name."""

    fact: str
    at: tuple[int, ...] = ()
    value: object = None
    error: int | None = None
    name: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What `wirelore probe --record` writes."""

    record_version: int
    redacted: bool
    facts: tuple[Fact, ...]
    broken: str | None = None
    host: HostFacts
    state: HostState = HostState()
    environment: dict[str, str]


def record_this_machine(*, redact: bool = True, environ: Mapping[str, str] = os.environ) -> Record:
    """Asks driver and host. Raises NoGpuError as `probe` does."""
    facts = read_nvml_facts(environ=environ)
    require_gpus(facts)
    told = tuple(Fact(k[0], k[1], r.value, r.error, r.name) for k, r in facts.readings.items())
    record = Record(
        record_version=RECORD_VERSION,
        redacted=False,
        facts=told,
        broken=facts.broken,
        host=read_host(),
        state=read_host_state(environ=environ),
        environment={name: environ[name] for name in ENVIRONMENT if name in environ},
    )
    return redacted(record) if redact else record


def encode_record(record: Record) -> bytes:
    """The record as indented JSON."""
    return to_json(record)


def decode_record(data: bytes, *, where: str) -> Record:
    """Raises SourceError naming the key that is wrong."""
    try:
        record = msgspec.json.decode(data, type=Record)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise SourceError(f"{where}: {reason}", cure=_CURE) from error
    if record.record_version != RECORD_VERSION:
        raise SourceError(
            f"{where} has record version {record.record_version}, this program reads {RECORD_VERSION}",
            cure="Update wirelore.",
        )
    return record


def replay(record: Record) -> Topology:
    """The topology that `probe` gave on the recorded machine. Raises NoGpuError as it did there."""
    facts = facts_of(record)
    require_gpus(facts)
    return with_host_state(with_host(topology_from_facts(facts, record.environment), record.host), record.state)


def facts_of(record: Record) -> Facts:
    readings: dict[Key, Reading] = {(f.fact, f.at): Reading(f.value, f.error, f.name) for f in record.facts}
    return Facts(readings, record.broken)


def redacted(record: Record) -> Record:
    """The same machine without what identifies it: host name, serials, UUIDs, GUIDs and addresses.

    UUIDs become hashes of themselves (they are random, so none can be found back), which keeps nodes of one NVLink
    domain together over several records; host names and serials can be guessed, so they become plain numbers.
    """
    names = {record.host.hostname, *(f.value for f in record.facts if f.fact == "hostname")}
    secrets = _replacements(record, {n for n in names if isinstance(n, str)})
    host = record.host
    return Record(
        record_version=record.record_version,
        redacted=True,
        facts=tuple(msgspec.structs.replace(f, value=_clean_fact(f, secrets)) for f in record.facts),
        broken=record.broken,
        host=replace(
            host,
            hostname=None if host.hostname is None else secrets[host.hostname],
            product=host.product and _clean_text(host.product, secrets),
            nics=tuple(
                replace(
                    nic,
                    name=_clean_text(nic.name, secrets),
                    interface=nic.interface and _clean_text(nic.interface, secrets),
                )
                for nic in host.nics
            ),
            notices=tuple(replace(n, message=_clean_text(n.message, secrets)) for n in host.notices),
        ),
        state=replace(
            record.state,
            requested_gpus=record.state.requested_gpus and _clean_devices(record.state.requested_gpus, record),
        ),
        environment={name: _clean_devices(value, record) for name, value in record.environment.items()},
    )


def _clean_fact(fact: Fact, secrets: Mapping[str, str]) -> object:
    """The fact's value; only what can identify changes, so that a host called H100 leaves the GPU's name alone."""
    value = fact.value
    if fact.fact == "hostname" and isinstance(value, str):
        return secrets[value]
    if fact.fact == "bindings" and isinstance(value, str):
        return value.replace("\\", "/").rpartition("/")[2]
    if fact.fact == "serial" and isinstance(value, str | int):
        alias = secrets.get(str(value), "0")
        return alias if isinstance(value, str) else int(alias)
    if fact.fact == "platform" and isinstance(value, dict):
        return {**value, "chassis": secrets.get(str(value.get("chassis")), "")}
    if fact.fact == "fabric" and isinstance(value, dict):
        cluster = str(value.get("cluster") or "")
        return {**value, "cluster": _hashed(cluster) if cluster.strip("0-") else cluster}
    if fact.fact == "processes" and isinstance(value, list):
        return [[number, *process[1:]] for number, process in enumerate(value, 1) if isinstance(process, list)]
    return _UUID.sub(_other_uuid, value) if isinstance(value, str) else value


def _clean_devices(value: str, record: Record) -> str:
    """CUDA_VISIBLE_DEVICES with other UUIDs; a shortened one stays as short, and still means the same GPU."""
    known = [str(f.value) for f in record.facts if f.fact in ("uuid", "mig.uuid")]

    def clean(entry: str) -> str:
        meant = next((uuid for uuid in known if entry.strip() and uuid.startswith(entry.strip())), None)
        return _clean_text(entry, {}) if meant is None else _clean_text(meant, {})[: len(entry.strip())]

    return ",".join(clean(entry) for entry in value.split(","))


def _replacements(record: Record, hostnames: set[str]) -> dict[str, str]:
    """What stands for each host name, its short form, each serial and each chassis: numbers in order of appearance."""
    found = {name: f"host{i}" for i, name in enumerate(sorted(hostnames), 1)}
    found |= {short: alias for name, alias in found.items() if (short := name.partition(".")[0])}
    found |= {domain: "domain" for name in hostnames if "." in (domain := name.partition(".")[2])}
    serials: list[object] = [f.value for f in record.facts if f.fact == "serial"]
    serials += [f.value.get("chassis") for f in record.facts if f.fact == "platform" and isinstance(f.value, dict)]
    for serial in dict.fromkeys(str(s) for s in serials if s):
        found[serial] = str(len(found) + 1)
    return found


def _clean_text(text: str, secrets: Mapping[str, str]) -> str:
    """A text without UUIDs, addresses, home folders, and host names in any case, also inside longer words."""
    text = _UUID.sub(_other_uuid, text)
    text = _ADDRESS.sub("address", _HOME.sub("home", _HARDWARE_NAME.sub(_other_name, text)))
    for secret in sorted(secrets, key=len, reverse=True):
        edge = "" if len(secret) >= _PLAIN_WORD else r"\b"
        text = re.sub(f"{edge}{re.escape(secret)}{edge}", secrets[secret], text, flags=re.IGNORECASE)
    return text


def _other_uuid(match: re.Match[str]) -> str:
    return f"{match.group(1)}-{_uuid_like(match.group(0)[4:])}"


def _other_name(match: re.Match[str]) -> str:
    """A device named after its hardware address keeps the kind and the length."""
    return match.group(1) + _hashed(match.group(0))[: len(match.group(2))]


def _hashed(text: str) -> str:
    return hashlib.sha256(text.lower().encode()).hexdigest()[:32]


def _uuid_like(text: str) -> str:
    """A hash in the shape of a UUID, so that two records of one GPU still agree."""
    h = _hashed(text)
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:32]}"
