// Threads: a process-wide pool whose workers run one function together (SPMD) and meet at barriers.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace effnet_fast {

// Spins briefly, then yields: a barrier comes every 20-200 us in a network, far less than a sleep
// costs.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait();

 private:
  const int count_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> phase_{0};
};

// What a kernel knows of the worker that runs it. Every worker of a team calls the same kernel with
// the same arguments; the kernel splits its work by (id, count) so that no output bit depends on
// count.
struct Worker {
  int id = 0;
  int count = 1;
  Barrier* barrier = nullptr;  // null when count == 1
  float* scratch = nullptr;    // this worker's own, 64-byte aligned
  float* shared = nullptr;     // the team's, the same pointer in every worker, 64-byte aligned

  void sync() const {
    if (barrier) barrier->wait();
  }
};

// Runs body(id, count) for id in [0, count) and returns when all are done. The caller is id 0.
// count is `threads`, or 1: the body runs alone on the caller's thread when the pool is busy with
// another caller, within another run_team, or when the system gives no more threads. A forked child
// gets a pool of its own. The first exception of a body reaches the caller; a body that meets
// others at barriers must not throw before the last of them, or they wait for ever.
void run_team(int threads, const std::function<void(int id, int count)>& body);

// [begin, end) of worker id when `items` are cut into `count` nearly equal runs.
struct Range {
  int64_t begin, end;
};
inline Range share(int64_t items, int id, int count) {
  return {items * id / count, items * (id + 1) / count};
}

}  // namespace effnet_fast
