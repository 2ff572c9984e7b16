// An auditing library of the dynamic loader (LD_AUDIT): in libraries that it is told of, the
// instruction cpuid says that the processor has no AVX-512. See without_avx512.py.
//
// Every place of the instruction becomes another of two bytes, ud2, when the library is mapped and
// before any of its code runs; the signal that it raises is answered with what cpuid says, less
// AVX-512. No file is changed.
#define _GNU_SOURCE
#include <cpuid.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { kMost = 4096 };

struct Site {
  char library[256];  // its file's name
  uintptr_t offset;   // of the instruction, from where the library is mapped
};

static struct Site sites[kMost];
static int count;
static uint8_t* patched[kMost];
static int patched_count;

// Leaf 7, without: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW,
// 4FMAPS, VP2INTERSECT, FP16, and AMX; and its second part without BF16.
static void hide(uint32_t leaf, uint32_t part, uint32_t* a, uint32_t* b, uint32_t* c, uint32_t* d) {
  if (leaf != 7) return;
  if (part == 0) {
    *b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    *c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
    *d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
  } else if (part == 1) {
    *a &= ~(1u << 5);
    *d &= ~(1u << 19);  // AVX10
  }
}

static void answer(int number, siginfo_t* info, void* context) {
  (void)info;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  uint8_t* at = (uint8_t*)registers[REG_RIP];
  for (int i = 0; i < patched_count; ++i) {
    if (patched[i] != at) continue;
    const uint32_t leaf = (uint32_t)registers[REG_RAX], part = (uint32_t)registers[REG_RCX];
    uint32_t a, b, c, d;
    __cpuid_count(leaf, part, a, b, c, d);
    hide(leaf, part, &a, &b, &c, &d);
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
    return;
  }
  signal(number, SIG_DFL);  // an illegal instruction that is not ours: again, and the end
}

static void fail(const char* what, const char* name) {
  fprintf(stderr, "without_avx512: %s: %s\n", what, name);
  _exit(3);
}

unsigned int la_version(unsigned int version) {
  const char* path = getenv("WITHOUT_AVX512_SITES");
  FILE* file = path ? fopen(path, "r") : NULL;
  if (!file) fail("no list of places", "WITHOUT_AVX512_SITES");
  while (fscanf(file, "%255s %lx", sites[count].library, &sites[count].offset) == 2) {
    if (++count == kMost) fail("more places than there is room for", path);
  }
  fclose(file);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, NULL);
  return version < LAV_CURRENT ? version : LAV_CURRENT;
}

unsigned int la_objopen(struct link_map* map, Lmid_t space, uintptr_t* cookie) {
  (void)space, (void)cookie;
  char path[PATH_MAX];
  if (!realpath(map->l_name, path)) return 0;  // the program itself
  const char* name = strrchr(path, '/') + 1;
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const int before = patched_count;
  for (int i = 0; i < count; ++i) {
    if (strcmp(sites[i].library, name) != 0) continue;
    if (patched_count == kMost) fail("mapped too often", name);
    uint8_t* at = (uint8_t*)(map->l_addr + sites[i].offset);
    if (at[0] != 0x0f || at[1] != 0xa2) fail("no cpuid where one should be", name);
    uint8_t* begin = (uint8_t*)((uintptr_t)at & ~(page - 1));
    const size_t bytes = (size_t)(at + 2 - begin);
    if (mprotect(begin, bytes, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) fail("read only", name);
    at[1] = 0x0b;
    mprotect(begin, bytes, PROT_READ | PROT_EXEC);
    patched[patched_count++] = at;
  }
  if (patched_count > before) {
    fprintf(stderr, "without_avx512: %s, %d places\n", name, patched_count - before);
  }
  return 0;
}
