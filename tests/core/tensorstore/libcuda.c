/* A libcuda that does nothing but say on standard error what it was called with: whether the
   driver's structs and numbers arrive as they should, without a GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
#define SAY(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), 0)

static int Init(unsigned flags) { return SAY("cuInit %u", flags); }
static int DeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
static int Attribute(int *value, int attribute, int device) {
    *value = 1;
    return SAY("cuDeviceGetAttribute %d %d", attribute, device);
}
static int Retain(void **context, int device) {
    *context = (void *)0xc0de;
    return SAY("cuDevicePrimaryCtxRetain %d", device);
}
static int Push(void *context) { return SAY("cuCtxPushCurrent %p", context); }
static int Pop(void **context) { *context = 0; return SAY("cuCtxPopCurrent"); }
static int Granularity(size_t *size, int *p, int option) {
    *size = 2 << 20;
    return SAY("cuMemGetAllocationGranularity %d %d %d %d, %d", p[0], p[1], p[2], p[3], option);
}
static int Create(u64 *handle, size_t size, int *p, u64 flags) {
    if (size > 1u << 30) return 2;
    *handle = 77;
    return SAY("cuMemCreate %zu, %d %d %d %d, %llu", size, p[0], p[1], p[2], p[3], flags);
}
static int Release(u64 handle) { return SAY("cuMemRelease %llu", handle); }
static int Export(void *out, u64 handle, int type, u64 flags) {
    *(int *)out = dup(1);
    return SAY("cuMemExportToShareableHandle %llu %d %llu", handle, type, flags);
}
static int Import(u64 *handle, void *descriptor, int type) {
    *handle = 78;
    return SAY("cuMemImportFromShareableHandle %s %d", (long)descriptor > 2 ? "fd" : "?", type);
}
static int Reserve(u64 *address, size_t size, size_t alignment, u64 hint, u64 flags) {
    *address = 0x7f0000000000;
    return SAY("cuMemAddressReserve %zu %zu %llu %llu", size, alignment, hint, flags);
}
static int Free(u64 address, size_t size) { return SAY("cuMemAddressFree %llx %zu", address, size); }
static int Map(u64 address, size_t size, size_t offset, u64 handle, u64 flags) {
    return SAY("cuMemMap %llx %zu %zu %llu %llu", address, size, offset, handle, flags);
}
static int Unmap(u64 address, size_t size) { return SAY("cuMemUnmap %llx %zu", address, size); }
static int Access(u64 address, size_t size, int *d, size_t count) {
    return SAY("cuMemSetAccess %llx %zu, %d %d %d, %zu", address, size, d[0], d[1], d[2], count);
}
static int Memset(u64 address, unsigned char value, size_t size, void *stream) {
    return SAY("cuMemsetD8Async %llx %u %zu %p", address, value, size, stream);
}
static int Copy(u64 address, const void *source, size_t size, void *stream) {
    return SAY("cuMemcpyHtoDAsync %llx %.5s %zu %p", address, (const char *)source, size, stream);
}
static int HostAlloc(void **address, size_t size, unsigned flags) {
    *address = calloc(1, size);
    return SAY("cuMemHostAlloc %zu %u", size, flags);
}
static int HostFree(void *address) { free(address); return SAY("cuMemFreeHost"); }
static int Stream(void **stream, unsigned flags) {
    *stream = (void *)0x57;
    return SAY("cuStreamCreate %u", flags);
}
static int StreamDestroy(void *stream) { return SAY("cuStreamDestroy %p", stream); }
static int StreamWait(void *stream) { return SAY("cuStreamSynchronize %p", stream); }
static int ContextWait(void) { return SAY("cuCtxSynchronize"); }
static int Info(size_t *free, size_t *total) { *free = 5; *total = 9; return 0; }
static int ErrorText(int code, const char **text) { *text = "some error"; return 0; }
static int Version(int *version) { *version = 13000; return 0; }
static int Other(void) { return 801; }

int cuGetProcAddress_v2(const char *name, void **function, int version, u64 flags, int *status) {
    static const struct { const char *name; void *function; } all[] = {
        {"cuInit", Init}, {"cuDeviceGet", DeviceGet}, {"cuDeviceGetAttribute", Attribute},
        {"cuDevicePrimaryCtxRetain", Retain}, {"cuCtxPushCurrent", Push},
        {"cuCtxPopCurrent", Pop}, {"cuMemGetAllocationGranularity", Granularity},
        {"cuMemCreate", Create}, {"cuMemRelease", Release},
        {"cuMemExportToShareableHandle", Export}, {"cuMemImportFromShareableHandle", Import},
        {"cuMemAddressReserve", Reserve}, {"cuMemAddressFree", Free}, {"cuMemMap", Map},
        {"cuMemUnmap", Unmap}, {"cuMemSetAccess", Access}, {"cuMemsetD8Async", Memset},
        {"cuMemcpyHtoDAsync", Copy}, {"cuMemHostAlloc", HostAlloc}, {"cuMemFreeHost", HostFree},
        {"cuStreamCreate", Stream}, {"cuStreamDestroy", StreamDestroy},
        {"cuStreamSynchronize", StreamWait}, {"cuCtxSynchronize", ContextWait},
        {"cuMemGetInfo", Info}, {"cuGetErrorString", ErrorText}, {"cuDriverGetVersion", Version},
        {"cuGetProcAddress", cuGetProcAddress_v2},
    };
    *function = (void *)Other;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, name)) *function = all[i].function;
    if (status) *status = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, u64 flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
