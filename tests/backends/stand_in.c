/* A CUDA driver in host memory, with as much of the driver API as running a plan takes; written from NVIDIA's reference of it.
 *
 * The stream is as lazy as a real one may be: nothing that was put on it happens before it is waited for. Its clock is its own:
 * a copy costs COPY_MS, other work what its caller says. DRIVER_VERSION, as 12060, is the CUDA that it serves. Functions named stand_in_* are the tests' own, to watch and to break it.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, CAPTURE_INVALIDATED = 901 };
enum { CONTEXT, STREAM, DEVICE_MEMORY, HOST_MEMORY, EVENT, GRAPH, EXECUTABLE, KINDS };
enum { WORK = 4096, THINGS = 4096, LOG = 1 << 20 };
#define COPY_MS 5.0

typedef struct { int kind; void *address; size_t size; } Thing;
typedef struct { int kind; void *target; const void *source; size_t size; void (*call)(long); long argument; double cost; } Work;
typedef struct { int count; Work work[WORK]; } Queue;

static Thing things[THINGS];
static Queue queue, *recording;
static char calls[LOG], faults[LOG];
static char failing[64];
static int failure;
static size_t largest = (size_t)1 << 30;
static double clock_ms;
static void *current;

static void note(char *log, const char *text) {
    if (strlen(log) + strlen(text) + 2 < LOG) { strcat(log, text); strcat(log, "\n"); }
}

static int fault(const char *text) { note(faults, text); return INVALID; }

static Thing *find(int kind, const void *address) {
    for (int i = 0; i < THINGS; i++)
        if (things[i].address && things[i].address == address && things[i].kind == kind) return &things[i];
    return NULL;
}

static int make(int kind, size_t size, void *answer) {
    for (int i = 0; i < THINGS; i++)
        if (!things[i].address) {
            things[i] = (Thing){kind, malloc(size), size};
            memset(things[i].address, 0xff, size);  /* what memory holds that nobody has written to */
            *(void **)answer = things[i].address;
            return OK;
        }
    return OUT_OF_MEMORY;
}

static int gone(int kind, void *address, const char *what) {
    Thing *found = find(kind, address);
    if (!found) return fault(what);
    free(found->address);
    found->address = NULL;
    return OK;
}

/* The call is noted; the error that a test asked for, once. */
static int entered(const char *name) {
    note(calls, name);
    if (failure && !strcmp(failing, name)) { int code = failure; failure = 0; return code; }
    return OK;
}

#define ENTER { int code = entered(__func__); if (code) return code; }

static int put(void *stream, Work work) {
    if (!find(STREAM, stream)) return fault("work on no stream");
    Queue *to = recording ? recording : &queue;
    if (to->count == WORK) return fault("too much work");
    to->work[to->count++] = work;
    return OK;
}

static void run(const Work *work) {
    clock_ms += work->cost;
    if (work->call) work->call(work->argument);
    else if (work->kind == EVENT) *(double *)work->target = clock_ms;
    else memmove(work->target, work->source, work->size);
}

int cuInit(unsigned flags) { ENTER return flags ? INVALID : OK; }
int cuDriverGetVersion(int *found) { *found = DRIVER_VERSION; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { ENTER *device = 7; return ordinal ? INVALID : OK; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stand-in"); return device == 7 ? OK : INVALID; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 0;
    return device == 7 ? OK : INVALID;
}
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)8 << 20; return device == 7 ? OK : INVALID; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = (size_t)3 << 20; *total = (size_t)8 << 20; return OK; }

int cuGetErrorString(int code, const char **words) {
    *words = code == OUT_OF_MEMORY ? "out of memory" : code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : NULL;
    return *words ? OK : INVALID;
}
int cuGetErrorName(int code, const char **name) { *name = NULL; return code ? INVALID : OK; }

int cuDevicePrimaryCtxRetain(void **context, int device) { ENTER return device == 7 ? make(CONTEXT, 1, context) : INVALID; }
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    for (int i = 0; i < THINGS; i++)
        if (things[i].address && things[i].kind == CONTEXT) return gone(CONTEXT, things[i].address, "context");
    return fault("no context is left");
}
int cuCtxSetCurrent(void *context) { ENTER current = context; return find(CONTEXT, context) ? OK : fault("no such context"); }

static int allocate(int kind, void *answer, size_t size) {
    if (!current) return fault("memory without a context");
    return size > largest ? OUT_OF_MEMORY : make(kind, size, answer);
}
int cuMemAlloc_v2(uintptr_t *address, size_t size) { ENTER return allocate(DEVICE_MEMORY, address, size); }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { ENTER return flags ? INVALID : allocate(HOST_MEMORY, address, size); }
int cuMemFree_v2(uintptr_t address) { return gone(DEVICE_MEMORY, (void *)address, "device memory freed that is not allocated"); }
int cuMemFreeHost(void *address) { return gone(HOST_MEMORY, address, "host memory freed that is not allocated"); }

static int copy(void *target, int target_kind, const void *source, int source_kind, size_t size, void *stream) {
    Thing *to = find(target_kind, target), *from = find(source_kind, source);
    if (!to || !from || to->size < size || from->size < size) return fault("a copy from or to what is not allocated");
    return put(stream, (Work){.target = target, .source = source, .size = size, .cost = COPY_MS});
}
int cuMemcpyHtoDAsync_v2(uintptr_t target, const void *source, size_t size, void *stream) {
    ENTER return copy((void *)target, DEVICE_MEMORY, source, HOST_MEMORY, size, stream);
}
int cuMemcpyDtoHAsync_v2(void *target, uintptr_t source, size_t size, void *stream) {
    ENTER return copy(target, HOST_MEMORY, (void *)source, DEVICE_MEMORY, size, stream);
}

int cuStreamCreate(void **stream, unsigned flags) { ENTER return flags == 1 ? make(STREAM, 1, stream) : INVALID; }
int cuStreamDestroy_v2(void *stream) { return gone(STREAM, stream, "a stream that is not there was destroyed"); }
int cuStreamSynchronize(void *stream) {
    if (!find(STREAM, stream) || recording) return fault("waited for no stream, or while it is recorded");
    ENTER
    for (int i = 0; i < queue.count; i++) run(&queue.work[i]);
    queue.count = 0;
    return OK;
}
int cuStreamBeginCapture_v2(void *stream, int mode) {
    ENTER
    if (!find(STREAM, stream) || recording || mode != 1) return fault("a recording of another kind");  /* 1: thread local */
    recording = calloc(1, sizeof(Queue));
    return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
    (void)stream;
    if (!recording) return fault("no recording to end");
    Queue *recorded = recording;
    recording = NULL;
    *graph = NULL;
    int code = entered(__func__);
    if (!code) {
        code = make(GRAPH, sizeof(Queue), graph);
        memcpy(*graph, recorded, sizeof(Queue));
    }
    free(recorded);
    return code;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    ENTER
    if (flags || !find(GRAPH, graph)) return fault("no such graph");
    int code = make(EXECUTABLE, sizeof(Queue), executable);
    memcpy(*executable, graph, sizeof(Queue));
    return code;
}
int cuGraphDestroy(void *graph) { return gone(GRAPH, graph, "a graph that is not there was destroyed"); }
int cuGraphExecDestroy(void *executable) { return gone(EXECUTABLE, executable, "an executable graph that is not there was destroyed"); }
int cuGraphLaunch(void *executable, void *stream) {
    ENTER
    if (!find(EXECUTABLE, executable)) return fault("no such executable graph");
    const Queue *recorded = executable;
    for (int i = 0; i < recorded->count; i++)
        if (put(stream, recorded->work[i])) return INVALID;
    return OK;
}

int cuEventCreate(void **event, unsigned flags) { ENTER return flags ? INVALID : make(EVENT, sizeof(double), event); }
int cuEventDestroy_v2(void *event) { return gone(EVENT, event, "an event that is not there was destroyed"); }
int cuEventRecord(void *event, void *stream) {
    ENTER
    if (!find(EVENT, event)) return fault("no such event");
    return put(stream, (Work){.kind = EVENT, .target = event});
}
int cuEventElapsedTime(float *elapsed_ms, void *start, void *end) {
    ENTER
    if (!find(EVENT, start) || !find(EVENT, end)) return fault("no such event");
    *elapsed_ms = (float)(*(double *)end - *(double *)start);
    return OK;
}
#if DRIVER_VERSION >= 12080
int cuEventElapsedTime_v2(float *elapsed_ms, void *start, void *end) { return cuEventElapsedTime(elapsed_ms, start, end); }
#endif

/* By a name without its form: the newest form that this driver has. */
int cuGetProcAddress_v2(const char *symbol, void **function, int asked, uint64_t flags, int *status) {
    char newest[128];
    (void)flags;
    *function = NULL;
    if (asked > DRIVER_VERSION) return NOT_FOUND;  /* a driver has no form of a later CUDA than its own */
    static const char *const forms[] = {"%s_v2", "%sWithFlags", "%s"};
    for (int i = 0; i < 3 && !*function; i++) {
        snprintf(newest, sizeof newest, forms[i], symbol);
        *function = dlsym(RTLD_DEFAULT, newest);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}

void stand_in_reset(void) {
    for (int i = 0; i < THINGS; i++) { free(things[i].address); things[i].address = NULL; }
    free(recording);
    recording = NULL;
    queue.count = 0;
    calls[0] = faults[0] = 0;
    failure = 0;
    largest = (size_t)1 << 30;
    clock_ms = 0;
    current = NULL;
}
void stand_in_fail(const char *name, int code) { snprintf(failing, sizeof failing, "%s", name); failure = code; }
void stand_in_largest(size_t size) { largest = size; }
int stand_in_alive(int kind) {
    int count = 0;
    for (int i = 0; i < THINGS; i++) count += things[i].address && things[i].kind == kind;
    return count;
}
int stand_in_has(int kind, void *address) { return find(kind, address) != NULL; }
int stand_in_put(void *stream, void (*call)(long), long argument, double cost) {
    return put(stream, (Work){.call = call, .argument = argument, .cost = cost});
}
double stand_in_clock_ms(void) { return clock_ms; }
int stand_in_recording(void) { return recording != NULL; }
void stand_in_note(const char *call) { note(calls, call); }
const char *stand_in_calls(void) { return calls; }
const char *stand_in_faults(void) { return faults; }
