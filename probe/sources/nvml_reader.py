"""Child process, the one door of pynvml: asks the driver everything and prints each answer as a line of JSON.

    python -I -S nvml_reader.py DEADLINE_S SYS_PATH...

A line is {"fact": "p2p", "at": [0, 1, 2], "value": 0}, or has "error" (nvmlReturn_t, -1 where the bindings themselves
failed) and "name" in place of "value". Lines come one by one, so that what was read survives a hang or a crash.
Every call is guarded by itself: the bindings raise more than NVMLError (ctypes.ArgumentError, AttributeError ...).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False  # importing `typing` costs more than all calls together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_GPUS = 64
MAX_MIG_INSTANCES = 64
MAX_PROCESSES = 1024
MAX_C2C_LINKS = 64
CPU_MASK_WORDS = 64  # of 64 CPUs each
FABRIC_PATIENCE_S = 1.0
FABRIC_POLL_S = 0.05
GPU_IS_LOST = 15
FABRIC_IN_PROGRESS = 2
FIELD_NVLINK_COUNT = 91
FIELD_C2C_COUNT = 170
FIELD_RECOVERY_ACTION = 230
UNSIGNED_LONGS = (2, 3)  # nvmlValueType_t: 64 bits on Linux, all other counts are unsigned int
P2P_CAPABILITIES = range(5)  # plain numbers: NVML_P2P_CAPS_INDEX_READ is a tuple in the bindings
LINK_USABLE = (1, 2)  # active; asleep, which wakes up on traffic

IDENTITY = {"uuid": "nvmlDeviceGetUUID", "pci": "nvmlDeviceGetPciInfo", "name": "nvmlDeviceGetName"}
DETAILS = {
    "serial": "nvmlDeviceGetSerial",
    "compute_capability": "nvmlDeviceGetCudaComputeCapability",
    "virtualization": "nvmlDeviceGetVirtualizationMode",
    "pcie.generation": "nvmlDeviceGetCurrPcieLinkGeneration",
    "pcie.generation_max": "nvmlDeviceGetMaxPcieLinkGeneration",
    "pcie.width": "nvmlDeviceGetCurrPcieLinkWidth",
    "pcie.width_max": "nvmlDeviceGetMaxPcieLinkWidth",
}
HEALTH = {
    "ecc.mode": "nvmlDeviceGetEccMode",
    "rows": "nvmlDeviceGetRemappedRows",
    "clocks.reasons": "nvmlDeviceGetCurrentClocksEventReasons",
    "power.limit": "nvmlDeviceGetPowerManagementLimit",
    "power.limit_default": "nvmlDeviceGetPowerManagementDefaultLimit",
    "power.limit_enforced": "nvmlDeviceGetEnforcedPowerLimit",
    "persistence": "nvmlDeviceGetPersistenceMode",
    "compute_mode": "nvmlDeviceGetComputeMode",
    "pcie.replays": "nvmlDeviceGetPcieReplayCounter",
}
ECC_TOTALS = {  # nvmlMemoryErrorType_t, nvmlEccCounterType_t
    "ecc.corrected.volatile": (0, 0),
    "ecc.uncorrected.volatile": (1, 0),
    "ecc.corrected.aggregate": (0, 1),
    "ecc.uncorrected.aggregate": (1, 1),
}
SRAM_ERRORS = {
    "uncorrected_parity.aggregate": "aggregateUncParity",
    "uncorrected_secded.aggregate": "aggregateUncSecDed",
    "corrected.aggregate": "aggregateCor",
    "uncorrected_parity.volatile": "volatileUncParity",
    "uncorrected_secded.volatile": "volatileUncSecDed",
    "corrected.volatile": "volatileCor",
    "threshold_exceeded": "bThresholdExceeded",
}
# Field ids of a link's error counters: Blackwell (NVLink 5) no longer has the first, and only it has the second.
LINK_ERRORS = {"replay": 161, "recovery": 162, "crc": 163}
LINK_ERRORS_5 = {
    "malformed_packets": 206, "buffer_overruns": 207, "receive_errors": 208, "receive_remote_errors": 209,
    "receive_general_errors": 210, "integrity_errors": 211, "transmit_discards": 212, "recoveries": 213,
    "failed_recoveries": 214, "recovery_events": 215, "effective_errors": 219, "symbol_errors": 221,
}  # fmt: skip
C2C_ERRORS = {"crc": 231, "replay": 232, "replay_back_to_back": 233}
NVLINK_5 = 7  # nvmlNvlinkVersion_t
# Newest first. The struct's version is named, for `c_nvmlGpuFabricInfoV_t` is v2 in Python and v3 in C.
FABRIC_LAYOUTS = (
    ("nvmlDeviceGetGpuFabricInfo_v4", "c_nvmlGpuFabricInfo_v4_t"),
    ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t"),
    ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t"),
    ("nvmlDeviceGetGpuFabricInfo", "c_nvmlGpuFabricInfo_t"),
)


class Reader:
    """Asks the bindings `nvml` and tells each answer to the file descriptor `out`."""

    def __init__(self, nvml: Any, out: int) -> None:
        self.nvml = nvml
        self.out = out
        self.handles: dict[int, Any] = {}
        self.registering: set[int] = set()  # GPUs whose fabric registration is in progress
        self.links: dict[int, list[tuple[int, int]]] = {}  # per GPU its usable links and their versions (0: not told)
        self.error: int | None = None  # of the last question

    def ask(self, fact: str, at: tuple[int, ...], call: Callable[[], Any], plain: Callable[[Any], object]) -> Any:
        """Tells plain(call()), or the error; returns the answer as it came, or None."""
        line: dict[str, object] = {"fact": fact, "at": at}
        answer, self.error = None, None
        try:
            answer = call()
            line["value"] = plain(answer)
        except Exception as error:
            code = getattr(error, "value", None)
            line["error"] = self.error = code if isinstance(code, int) else -1
            line["name"] = type(error).__name__.removeprefix("NVMLError_")
        self.tell(line)
        return answer

    def get(self, fact: str, at: tuple[int, ...], function: str, *arguments: object) -> Any:
        return self.ask(fact, at, lambda: getattr(self.nvml, function)(*arguments), _plain)

    def tell(self, line: dict[str, object]) -> None:
        os.write(self.out, json.dumps(line).encode() + b"\n")

    def read_all(self, patience_s: float) -> None:
        self.ask("init", (), self.nvml.nvmlInit, _true)
        if self.error is not None:
            return
        self.get("driver", (), "nvmlSystemGetDriverVersion")
        self.get("nvml", (), "nvmlSystemGetNVMLVersion")
        self.get("cuda", (), "nvmlSystemGetCudaDriverVersion_v2")
        count = self.get("count", (), "nvmlDeviceGetCount") or 0
        for i in range(min(count, MAX_GPUS)):
            if self.read_gpu(i):
                for j in self.handles:
                    if j < i:
                        self.read_pair(j, i)
        self.await_fabric(patience_s)
        for i in self.handles:  # last, so that a driver that hangs here has told the whole topology
            self.read_health(i)

    def read_gpu(self, i: int) -> bool:
        """False where the GPU gives no handle or is lost: then nothing more is asked of it."""
        get_handle = self.nvml.nvmlDeviceGetHandleByIndex
        h = self.ask("handle", (i,), lambda: get_handle(i), _true)
        if h is None:
            return False
        for fact, function in IDENTITY.items():
            self.get(fact, (i,), function, h)
            if self.error == GPU_IS_LOST:
                return False
        self.ask("memory", (i,), lambda: self.memory(h), dict)
        if self.error == GPU_IS_LOST:
            return False
        for fact, function in DETAILS.items():
            self.get(fact, (i,), function, h)
        get_affinity = self.nvml.nvmlDeviceGetCpuAffinity
        self.ask("cpu_affinity", (i,), lambda: get_affinity(h, CPU_MASK_WORDS), _words)
        node = self.get("numa_node", (i,), "nvmlDeviceGetNumaNodeId", h)
        if node is not None:
            self.ask("numa_node.cpus", (node,), lambda: _numa_cpus(node), _plain)
        self.ask("platform", (i,), lambda: self.platform(h), dict)
        if self.ask_fabric(i, h) == FABRIC_IN_PROGRESS:
            self.registering.add(i)
        self.read_mig(i, h)
        self.read_links(i, h)
        self.tell({"fact": "read", "at": (i,), "value": True})
        self.handles[i] = h
        return True

    def read_mig(self, i: int, h: Any) -> None:
        mode = self.get("mig.mode", (i,), "nvmlDeviceGetMigMode", h)
        if not mode or mode[0] != 1:
            return
        count = self.get("mig.count", (i,), "nvmlDeviceGetMaxMigDeviceCount", h) or 0
        for m in range(min(count, MAX_MIG_INSTANCES)):
            self.read_mig_instance(i, m, h)

    def read_mig_instance(self, i: int, m: int, h: Any) -> None:
        get_handle = self.nvml.nvmlDeviceGetMigDeviceHandleByIndex
        instance = self.ask("mig", (i, m), lambda: get_handle(h, m), _true)
        if instance is not None:  # the indices are sparse
            self.get("mig.uuid", (i, m), "nvmlDeviceGetUUID", instance)
            self.get("mig.name", (i, m), "nvmlDeviceGetName", instance)
            self.ask("mig.memory", (i, m), lambda: self.memory(instance), dict)

    def read_links(self, i: int, h: Any) -> None:
        """A link is present only if its state reads: drivers answer other queries for indices beyond the last link."""
        count = self.ask("links", (i,), lambda: self.field(h, FIELD_NVLINK_COUNT), _plain)
        present = 0
        for link in range(getattr(self.nvml, "NVML_NVLINK_MAX_LINKS", 18)):
            if count is not None and present >= count:
                break
            state = self.get("link.state", (i, link), "nvmlDeviceGetNvLinkState", h, link)
            present += state is not None
            if state in LINK_USABLE:
                version = self.get("link.version", (i, link), "nvmlDeviceGetNvLinkVersion", h, link)
                self.links.setdefault(i, []).append((link, version or 0))
                self.get("link.type", (i, link), "nvmlDeviceGetNvLinkRemoteDeviceType", h, link)
                self.get("link.pci", (i, link), "nvmlDeviceGetNvLinkRemotePciInfo", h, link)

    def read_health(self, i: int) -> None:
        h = self.handles[i]
        answers = {}
        for fact, function in HEALTH.items():
            answers[fact] = self.get(fact, (i,), function, h)
            if self.error == GPU_IS_LOST:
                self.tell({"fact": "read", "at": (i,), "error": GPU_IS_LOST, "name": "GpuIsLost"})  # a later fact wins
                return
        if answers["ecc.mode"] and answers["ecc.mode"][0] == 1:
            for fact, kinds in ECC_TOTALS.items():
                self.get(fact, (i,), "nvmlDeviceGetTotalEccErrors", h, *kinds)
            self.ask("ecc.sram", (i,), lambda: self.sram_errors(h), dict)
        if answers["rows"] is None:  # before Ampere bad memory is retired by pages
            self.get("pages.pending", (i,), "nvmlDeviceGetRetiredPagesPendingStatus", h)
        self.ask("processes", (i,), lambda: self.nvml.nvmlDeviceGetComputeRunningProcesses_v3(h), _processes)
        self.ask("recovery_action", (i,), lambda: self.field(h, FIELD_RECOVERY_ACTION), _plain)
        for link, version in self.links.get(i, ()):
            self.read_errors("link.errors", i, link, LINK_ERRORS_5 if version >= NVLINK_5 else LINK_ERRORS)
        c2c_links = self.ask("c2c.links", (i,), lambda: self.field(h, FIELD_C2C_COUNT), _plain) or 0
        for link in range(min(c2c_links, MAX_C2C_LINKS)):
            self.read_errors("c2c.errors", i, link, C2C_ERRORS)

    def read_errors(self, fact: str, i: int, link: int, numbers: dict[str, int]) -> None:
        self.ask(fact, (i, link), lambda: self.fields(self.handles[i], numbers, link), dict)

    def read_pair(self, a: int, b: int) -> None:
        from_a, from_b = self.handles[a], self.handles[b]
        self.get("ancestor", (a, b), "nvmlDeviceGetTopologyCommonAncestor", from_a, from_b)
        for capability in P2P_CAPABILITIES:
            self.get("p2p", (a, b, capability), "nvmlDeviceGetP2PStatus", from_a, from_b, capability)
            self.get("p2p", (b, a, capability), "nvmlDeviceGetP2PStatus", from_b, from_a, capability)

    def ask_fabric(self, i: int, h: Any) -> Any:
        return (self.ask("fabric", (i,), lambda: self.fabric(h), dict) or {}).get("state")

    def await_fabric(self, patience_s: float) -> None:
        """Registration in progress is legitimate while a node boots: asks again for a short while."""
        ends = time.monotonic() + patience_s
        while self.registering and time.monotonic() < ends:
            time.sleep(FABRIC_POLL_S)
            for i in tuple(self.registering):
                if self.ask_fabric(i, self.handles[i]) != FABRIC_IN_PROGRESS:
                    self.registering.remove(i)

    def memory(self, h: Any) -> dict[str, int]:
        try:
            info = self.nvml.nvmlDeviceGetMemoryInfo(h, self.nvml.nvmlMemory_v2)
        except Exception:  # v1 counts the reserved part as used, but total and free agree
            info = self.nvml.nvmlDeviceGetMemoryInfo(h)
        return {"total": info.total, "free": info.free}

    def field(self, h: Any, number: int) -> int:
        return self.fields(h, {"": number})[""]

    def fields(self, h: Any, numbers: dict[str, int], scope: int = 0) -> dict[str, int]:
        """Those that can be read: the call succeeds while each entry carries its own code. Raises where none can."""
        entries = self.nvml.nvmlDeviceGetFieldValues(h, [(number, scope) for number in numbers.values()])
        read = {
            name: int(e.value.ullVal if e.valueType in UNSIGNED_LONGS else e.value.uiVal)
            for name, e in zip(numbers, entries, strict=True)
            if e.nvmlReturn == 0
        }
        if not read:
            raise self.nvml.NVMLError(entries[0].nvmlReturn)
        return read

    def sram_errors(self, h: Any) -> dict[str, int]:
        from ctypes import byref

        status = self.nvml.c_nvmlEccSramErrorStatus_v1_t()
        self.nvml.nvmlDeviceGetSramEccErrorStatus(h, byref(status))
        return {name: getattr(status, field) for name, field in SRAM_ERRORS.items()}

    def fabric(self, h: Any) -> dict[str, object]:
        from ctypes import byref

        failure: Exception = LookupError("no fabric call")
        for function, layout in FABRIC_LAYOUTS:
            try:
                info = getattr(self.nvml, layout)()
                getattr(self.nvml, function)(h, byref(info))
            except Exception as error:
                failure = error
                continue
            clique = getattr(info, "cliqueId", None)
            if clique is None:  # v4 lists cliques by kind of access; kind 0, unicast, is what older layouts call clique
                clique = next((c.id for c in info.cliques[: info.numCliques] if c.type == 0), None)
            return {
                "state": info.state & 0xFF,  # one byte, padded with anything
                "status": info.status,
                "cluster": bytes(info.clusterUuid).hex(),
                "clique": clique,
                "health": getattr(info, "healthMask", None),
            }
        raise failure

    def platform(self, h: Any) -> dict[str, object]:
        """Where the GPU stands in its rack. Read as bytes: the bindings give binary fields the type of a text."""
        from ctypes import byref

        info = self.nvml.c_nvmlPlatformInfo_v2_t()
        self.nvml.nvmlDeviceGetPlatformInfo(h, byref(info))
        raw = bytes(info)
        chassis = raw[20:36].rstrip(b"\0").decode("ascii", "replace")
        return {"chassis": chassis, "slot": raw[36], "tray": raw[37], "host": raw[38], "module": raw[40]}


def _true(_: object) -> bool:
    return True


def _plain(answer: Any) -> object:
    answer = getattr(answer, "busId", answer)
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer


def _words(mask: Any) -> list[int]:
    words = list(mask)
    while words and not words[-1]:
        words.pop()
    return words


def _processes(found: Any) -> list[list[int | None]]:
    """Process ids and bytes, or None where the driver does not tell them (vGPU, WSL2). Names are nobody's business."""
    return [[p.pid, p.usedGpuMemory] for p in found[:MAX_PROCESSES]]


def _numa_cpus(node: int) -> str:
    with open(f"/sys/devices/system/node/node{int(node)}/cpulist", encoding="ascii") as file:  # noqa: PTH123
        return file.read(4096).strip()


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a driver prints must not mix with the facts
    deadline_s = float(sys.argv[1])
    signal.alarm(int(deadline_s) + 2)  # ends a reader whose parent died; the parent's deadline comes first
    sys.path[:] = sys.argv[2:]
    reader = Reader(None, out)
    reader.ask("hostname", (), lambda: os.uname().nodename, _plain)
    nvml = reader.ask("bindings", (), lambda: __import__("pynvml"), lambda module: module.__file__)
    # The abandoned distribution "pynvml" brings a package that hides the module of nvidia-ml-py.
    if nvml is not None and not nvml.__file__.endswith("__init__.py"):
        reader.nvml = nvml
        reader.read_all(min(FABRIC_PATIENCE_S, deadline_s / 4))
    reader.tell({"fact": "end", "at": (), "value": True})
    os._exit(0)  # neither nvmlShutdown nor an exit handler may hang after the last answer


if __name__ == "__main__":
    main()
