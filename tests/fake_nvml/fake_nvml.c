/* A stand-in for libnvidia-ml.so.1 that answers from a text, so that the real bindings run over the real C ABI.
 *
 * FAKE_NVML names the text, re-read at each init. Its lines are `key [i [j [k]]] = value`, where a value may be
 *   !15     return this nvmlReturn_t         hang    never return        crash   die by SIGSEGV
 *   a ; b   first a, from then on b          (no such key: NVML_ERROR_NOT_SUPPORTED)
 * Struct layouts are those of nvml.h 13.5 (PyPI nvidia-nvml-dev); a struct's value lists its fields in order.
 */
#include <ctype.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int ret;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef const void *device;

enum { OK, INVALID = 2, NOT_SUPPORTED = 3, NO_ROOM = 7, NO_DRIVER = 9, NO_FUNCTION = 13, WRONG_VERSION = 25 };
enum { MAX_LINES = 1 << 16, MAX_GPUS = 1000 };

static struct line { char *key, *value; int later; } lines[MAX_LINES];
static size_t line_count;
static char *text;

/* ---- the description ------------------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b) {
    return strcmp(((const struct line *)a)->key, ((const struct line *)b)->key);
}

static char *trim(char *s) {
    while (isspace((unsigned char)*s)) s++;
    for (char *end = s + strlen(s); end > s && isspace((unsigned char)end[-1]);) *--end = 0;
    return s;
}

static ret load(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "rb") : NULL;
    if (!file) return NO_DRIVER;
    free(text);
    text = calloc(1, 1 << 22);
    size_t got = fread(text, 1, (1 << 22) - 1, file);
    fclose(file);
    line_count = 0;
    for (char *at = text, *next; at < text + got && line_count < MAX_LINES; at = next) {
        next = at + strcspn(at, "\n") + 1;
        next[-1] = 0;
        char *equals = strchr(at, '=');
        if (!equals || *at == '#') continue;
        *equals = 0;
        struct line *line = &lines[line_count++];
        *line = (struct line){trim(at), trim(equals + 1), 0};
        for (char *c = line->value; *c; c++)
            if (*c == ';') *c = 0, line->later++;
    }
    qsort(lines, line_count, sizeof *lines, by_key);
    return OK;
}

/* The value under a printf-formed key, or the code that the description gives instead. */
static ret ask(const char **value, const char *format, ...) {
    char key[96];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    struct line wanted = {key, NULL, 0}, *line = bsearch(&wanted, lines, line_count, sizeof *lines, by_key);
    if (!line) return NOT_SUPPORTED;
    char *told = line->value;
    if (line->later) line->value += strlen(told) + 1, line->later--;
    *value = trim(told);
    if (!strcmp(*value, "hang")) for (;;) pause();
    if (!strcmp(*value, "crash")) raise(SIGSEGV);
    return **value == '!' ? atoi(*value + 1) : OK;
}

/* ---- handles: 1 + GPU, and 1000 * (1 + instance) more for a MIG device ------------------------------------------ */

static device handle(u32 gpu, int mig) { return (device)(uintptr_t)(1 + gpu + MAX_GPUS * (u32)(mig + 1)); }
static int gpu_of(device h) { return (int)(((uintptr_t)h - 1) % MAX_GPUS); }
static int mig_of(device h) { return (int)(((uintptr_t)h - 1) / MAX_GPUS) - 1; }

static ret ask_device(const char **value, device h, const char *key) {
    return mig_of(h) < 0 ? ask(value, "%s %d", key, gpu_of(h)) : ask(value, "mig.%s %d %d", key, gpu_of(h), mig_of(h));
}

static ret copy(ret code, const char *value, char *out, u32 size) {
    if (code) return code;
    if (strlen(value) >= size) return NO_ROOM;
    strcpy(out, value);
    return OK;
}

static ret number(ret code, const char *value, u32 *out) {
    if (!code) *out = (u32)strtoul(value, NULL, 0);
    return code;
}

static ret numbers(ret code, const char *value, u64 *out, int count) {
    for (char *end; !code && count--; value = end) *out++ = strtoull(value, &end, 0);
    return code;
}

#define SYSTEM_TEXT(function, key) \
    ret function(char *out, u32 size) { const char *v = ""; ret r = ask(&v, key); return copy(r, v, out, size); }
#define SYSTEM_NUMBER(function, key) \
    ret function(u32 *out) { const char *v = ""; ret r = ask(&v, key); return number(r, v, out); }
#define TEXT(function, key) \
    ret function(device h, char *out, u32 size) { \
        const char *v = ""; ret r = ask_device(&v, h, key); return copy(r, v, out, size); }
#define NUMBER(function, key) \
    ret function(device h, u32 *out) { const char *v = ""; ret r = ask_device(&v, h, key); return number(r, v, out); }
#define LONG_NUMBER(function, key) \
    ret function(device h, u64 *out) { \
        const char *v = ""; ret r = ask_device(&v, h, key); return numbers(r, v, out, 1); }
#define TWO_NUMBERS(function, key) \
    ret function(device h, u32 *a, u32 *b) { \
        const char *v = ""; u64 got[2]; ret r = ask_device(&v, h, key); \
        if (!(r = numbers(r, v, got, 2))) *a = (u32)got[0], *b = (u32)got[1]; \
        return r; }
#define LINK_NUMBER(function, key) \
    ret function(device h, u32 link, u32 *out) { \
        const char *v = ""; ret r = ask(&v, key " %d %u", gpu_of(h), link); return number(r, v, out); }

/* ---- the library ------------------------------------------------------------------------------------------------ */

ret nvmlInitWithFlags(u32 flags) {
    (void)flags;
    const char *value = "";
    ret loaded = load(), told = loaded ? OK : ask(&value, "init");
    return loaded ? loaded : told == NOT_SUPPORTED ? OK : told;
}
ret nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
ret nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(ret code) { (void)code; return "an error of the fake"; }

SYSTEM_TEXT(nvmlSystemGetDriverVersion, "driver")
SYSTEM_TEXT(nvmlSystemGetNVMLVersion, "nvml")
SYSTEM_NUMBER(nvmlSystemGetCudaDriverVersion_v2, "cuda")
SYSTEM_NUMBER(nvmlDeviceGetCount_v2, "count")
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
NUMBER(nvmlDeviceGetVirtualizationMode, "virtualization")
NUMBER(nvmlDeviceGetNumaNodeId, "numa_node")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie.generation")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie.generation_max")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie.width")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie.width_max")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, "mig.count")
TWO_NUMBERS(nvmlDeviceGetMigMode, "mig.mode")
TWO_NUMBERS(nvmlDeviceGetCudaComputeCapability, "compute_capability")
NUMBER(nvmlDeviceGetPowerManagementLimit, "power.limit")
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, "power.limit_default")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power.limit_enforced")
NUMBER(nvmlDeviceGetPersistenceMode, "persistence")
NUMBER(nvmlDeviceGetComputeMode, "compute_mode")
NUMBER(nvmlDeviceGetPcieReplayCounter, "pcie.replays")
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "pages.pending")
LONG_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "clocks.reasons")
TWO_NUMBERS(nvmlDeviceGetEccMode, "ecc.mode")
LINK_NUMBER(nvmlDeviceGetNvLinkState, "link.state")
LINK_NUMBER(nvmlDeviceGetNvLinkVersion, "link.version")
LINK_NUMBER(nvmlDeviceGetNvLinkRemoteDeviceType, "link.type")

ret nvmlDeviceGetHandleByIndex_v2(u32 index, device *out) {
    const char *value = "";
    ret told = ask(&value, "handle %u", index);
    *out = handle(index, -1);
    return told == NOT_SUPPORTED ? OK : told;
}

ret nvmlDeviceGetMigDeviceHandleByIndex(device h, u32 index, device *out) {
    const char *value = "";
    *out = handle((u32)gpu_of(h), (int)index);
    return ask(&value, "mig.uuid %d %u", gpu_of(h), index) ? 6 /* NOT_FOUND */ : OK;
}

typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;

ret nvmlDeviceGetPciInfo_v3(device h, pci_info *out) {
    const char *value = "";
    ret code = ask_device(&value, h, "pci");
    return copy(code, value, out->bus_id, sizeof out->bus_id);
}

ret nvmlDeviceGetNvLinkRemotePciInfo_v2(device h, u32 link, pci_info *out) {
    const char *value = "";
    ret code = ask(&value, "link.pci %d %u", gpu_of(h), link);
    return copy(code, value, out->bus_id, sizeof out->bus_id);
}

/* memory = total reserved free used; `memory.v2 i = !13` leaves only the old call */
typedef struct { u32 version; u64 fields[4]; } memory_v2;
typedef struct { u64 total, free, used; } memory_v1;

ret nvmlDeviceGetMemoryInfo_v2(device h, memory_v2 *out) {
    const char *value = "";
    ret told = ask_device(&value, h, "memory.v2");
    if (told && told != NOT_SUPPORTED) return told;
    if (out->version != (2u << 24 | sizeof *out)) return WRONG_VERSION;
    ret code = ask_device(&value, h, "memory");
    return numbers(code, value, out->fields, 4);
}

ret nvmlDeviceGetMemoryInfo(device h, memory_v1 *out) {
    const char *value = "";
    u64 got[4];
    ret code = ask_device(&value, h, "memory");
    if (!(code = numbers(code, value, got, 4))) out->total = got[0], out->free = got[2], out->used = got[1] + got[3];
    return code;
}

ret nvmlDeviceGetCpuAffinity(device h, u32 words, u64 *out) {
    const char *value = "";
    ret code = ask_device(&value, h, "cpu_affinity");
    return numbers(code, value, out, (int)words);
}

ret nvmlDeviceGetTopologyCommonAncestor(device a, device b, u32 *out) {
    const char *value = "";
    int low = gpu_of(a) < gpu_of(b) ? gpu_of(a) : gpu_of(b), high = gpu_of(a) + gpu_of(b) - low;
    ret code = ask(&value, "ancestor %d %d", low, high);
    return number(code, value, out);
}

ret nvmlDeviceGetP2PStatus(device a, device b, u32 capability, u32 *out) {
    const char *value = "";
    ret code = ask(&value, "p2p %d %d %u", gpu_of(a), gpu_of(b), capability);
    return number(code, value, out);
}

typedef struct { u32 field, scope; long long stamp, latency; u32 type; ret code; u64 value; } field_value;

ret nvmlDeviceGetFieldValues(device h, int count, field_value *fields) {
    for (field_value *f = fields; f < fields + count; f++) {
        const char *value = "";
        f->code = ask(&value, "field %d %u %u", gpu_of(h), f->field, f->scope);
        if (f->code == NOT_SUPPORTED) f->code = ask(&value, "field %d %u", gpu_of(h), f->field);
        u64 told = f->code ? 0 : strtoull(value, NULL, 0);
        f->type = told >> 32 ? 3 : 1; /* unsigned long long, unsigned int: what is beyond it is undefined */
        f->value = f->type == 1 ? 0xeeeeeeee00000000 | told : told;
    }
    return OK;
}

/* ecc.corrected.volatile, ecc.uncorrected.volatile, the same with aggregate */
ret nvmlDeviceGetTotalEccErrors(device h, u32 type, u32 counter, u64 *out) {
    const char *value = "";
    ret code = ask(&value, "ecc.%s.%s %d", type ? "uncorrected" : "corrected", counter ? "aggregate" : "volatile", gpu_of(h));
    return numbers(code, value, out, 1);
}

/* rows = corrected uncorrected pending failed */
ret nvmlDeviceGetRemappedRows(device h, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
    const char *value = "";
    u64 got[4];
    ret code = ask_device(&value, h, "rows");
    if (!(code = numbers(code, value, got, 4)))
        *corrected = (u32)got[0], *uncorrected = (u32)got[1], *pending = (u32)got[2], *failed = (u32)got[3];
    return code;
}

/* ecc.sram = the six totals in the order of the struct, and whether the threshold is exceeded */
typedef struct { u32 version; u64 totals[6], buckets[5]; u32 exceeded; } sram_status;

ret nvmlDeviceGetSramEccErrorStatus(device h, sram_status *out) {
    const char *value = "";
    u64 got[7];
    if (out->version != (1u << 24 | sizeof *out)) return WRONG_VERSION;
    ret code = ask_device(&value, h, "ecc.sram");
    if (!(code = numbers(code, value, got, 7))) memcpy(out->totals, got, sizeof out->totals), out->exceeded = (u32)got[6];
    return code;
}

/* processes = pid bytes pid bytes ... (or nothing at all) */
typedef struct { u32 pid; u64 used; u32 gpu_instance, compute_instance; } process;

ret nvmlDeviceGetComputeRunningProcesses_v3(device h, u32 *count, process *out) {
    const char *value = "";
    u32 room = *count;
    ret code = ask_device(&value, h, "processes");
    if (code) return code;
    *count = 0;
    for (char *end; *value; value = end + strspn(end, " ")) {
        u64 got[2] = {strtoull(value, &end, 0), 0};
        got[1] = strtoull(end, &end, 0);
        if (out && *count < room) out[*count] = (process){(u32)got[0], got[1], ~0u, ~0u};
        ++*count;
    }
    return *count > room ? NO_ROOM : OK;
}

/* fabric = state status clique health-mask cluster-uuid (32 hex digits); `fabric.version` is the newest call there is */
static ret fabric(device h, u32 version, u32 state_status_clique_mask[4], unsigned char cluster[16]) {
    const char *value = "";
    u32 newest = 3;
    if (!ask(&value, "fabric.version")) number(OK, value, &newest);
    if (version > newest) return version == 4 ? NO_FUNCTION : WRONG_VERSION;
    ret code = ask_device(&value, h, "fabric");
    if (code) return code;
    u32 *n = state_status_clique_mask;
    char hex[33] = "";
    if (sscanf(value, "%u %u %u %i %32s", n, n + 1, n + 2, (int *)(n + 3), hex) < 4) return INVALID;
    for (int i = 0; hex[0] && i < 16; i++) sscanf(hex + 2 * i, "%2hhx", cluster + i);
    return OK;
}

typedef struct {
    u32 version; unsigned char cluster[16]; ret status; u32 clique; unsigned char state; u32 mask; unsigned char summary;
} fabric_v3;
typedef struct {
    unsigned char cluster[16]; ret status; struct { unsigned char type; u32 id; } cliques[64];
    u32 clique_count; unsigned char state; u32 mask; unsigned char summary;
} fabric_v4;

ret nvmlDeviceGetGpuFabricInfoV(device h, fabric_v3 *out) {
    u32 n[4];
    ret code = fabric(h, out->version >> 24, n, out->cluster);
    if (code) return code;
    memset(&out->state, 0xee, 4); /* the state is one byte; what pads it is undefined */
    out->state = (unsigned char)n[0], out->status = (ret)n[1], out->clique = n[2], out->mask = n[3];
    return OK;
}

ret nvmlDeviceGetGpuFabricInfo_v4(device h, fabric_v4 *out) {
    u32 n[4];
    ret code = fabric(h, 4, n, out->cluster);
    if (code) return code;
    out->state = (unsigned char)n[0], out->status = (ret)n[1], out->mask = n[3];
    out->clique_count = 2;
    out->cliques[0].type = 0, out->cliques[0].id = n[2]; /* unicast pointer: what v3 calls the clique */
    out->cliques[1].type = 1, out->cliques[1].id = n[2] + 77;
    return OK;
}

/* platform = chassis-serial slot tray host peer-type module */
typedef struct { u32 version; unsigned char guid[16], chassis[16], place[5]; } platform_v2;

ret nvmlDeviceGetPlatformInfo(device h, platform_v2 *out) {
    const char *value = "";
    ret code = ask_device(&value, h, "platform");
    if (!code && out->version != (2u << 24 | sizeof *out)) return WRONG_VERSION;
    unsigned char *p = out->place;
    char serial[17] = "";
    if (!code && sscanf(value, "%16s %hhu %hhu %hhu %hhu %hhu", serial, p, p + 1, p + 2, p + 3, p + 4) < 6) return INVALID;
    if (!code) memset(out->guid, 0xff, 16), memcpy(out->chassis, serial, 16);
    return code;
}
