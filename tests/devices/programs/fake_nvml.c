/* A library that answers as NVIDIA's libnvidia-ml.so.1 does, of two cards, the second of which is lost.
   FAKE_NVML says how it fails: mismatch, crash, noise. The numbers of errors are those of nvmlReturn_t. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char name[32]; } pci_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } process_t;

static int is(const char *how) { const char *set = getenv("FAKE_NVML"); return set && !strcmp(set, how); }
static int text(char *into, unsigned size, const char *value) { snprintf(into, size, "%s", value); return 0; }

const char *nvmlErrorString(int code) {
  return code == 18 ? "Driver/library version mismatch" : code == 15 ? "GPU is lost" : "Not Supported";
}
int nvmlInit_v2(void) {
  if (is("crash")) abort();
  if (is("noise")) printf("a library may print what it likes\n"), fflush(stdout);
  return is("mismatch") ? 18 : 0;
}
int nvmlSystemGetDriverVersion(char *into, unsigned size) { return text(into, size, "580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)0x1000; return index ? 15 : 0; }
int nvmlDeviceGetUUID(void *handle, char *into, unsigned size) {
  return text(into, size, handle == (void *)0x1000 ? "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77" : "MIG-1");
}
int nvmlDeviceGetName(void *handle, char *into, unsigned size) { return text(into, size, "NVIDIA H100 NVL"); }
int nvmlDeviceGetPciInfo_v3(void *handle, pci_t *into) {
  *into = (pci_t){.legacy = "0000:C1:00.0", .domain = 1, .bus = 0xc1, .device = 0, .name = "00000001:C1:00.0"};
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *into) {
  *into = (memory_t){100ULL << 30, 60ULL << 30, 40ULL << 30};
  return 0;
}
static int processes(unsigned *count, process_t *into, unsigned pid, unsigned long long used) {
  if (*count < 1) return 7;
  *count = 1;
  into[0] = (process_t){pid, used, ~0u, ~0u};
  return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *into) {
  return processes(count, into, 4711, 7ULL << 30);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process_t *into) {
  return processes(count, into, 815, getenv("FAKE_NVML_MUTE") ? ~0ULL : 1ULL << 20);
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
  *current = *pending = is("mig");
  return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *card, unsigned index, void **handle) {
  *handle = (void *)0x2000;
  return index ? 6 : 0;
}
