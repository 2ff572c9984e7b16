// run_team and Barrier: a pool that grows to the largest team asked for and lives until the process
// exits.
#include "effnet_fast/team.h"

#include <pthread.h>

#include <cfenv>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace effnet_fast {
namespace {

// A pause is 40 to 140 cycles: 10 to 40 us at a barrier, 40 to 160 us between jobs, about what a
// caller in Python needs from one call to the next; waking a sleeper costs 5 to 50 us.
constexpr int kBarrierSpins = 1000;
constexpr int kIdleSpins = 4000;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
bool spin(int spins, Done done) {
  for (int i = 0; i < spins; ++i) {
    if (done()) return true;
    relax();
  }
  return false;
}

// Yielding, the others get the core when there are more workers than cores.
template <class Done>
void spin_then_yield(Done done) {
  if (spin(kBarrierSpins, done)) return;
  while (!done()) std::this_thread::yield();
}

using Body = std::function<void(int, int)>;

thread_local bool inside_team = false;

class Inside {
 public:
  Inside() : before_(inside_team) { inside_team = true; }
  ~Inside() { inside_team = before_; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  const bool before_;
};

class Pool {
 public:
  // The pool for one caller until release(); everything else here is for the one who has it.
  bool acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  // False when the system gives no more threads.
  bool grow(int workers) {
    try {
      while (static_cast<int>(slots_.size()) < workers) {
        auto slot = std::make_unique<Slot>();
        Slot* raw = slot.get();
        const int id = static_cast<int>(slots_.size()) + 1;
        slots_.push_back(std::move(slot));
        try {
          raw->thread = std::thread([this, raw, id] { work(*raw, id); });
        } catch (...) {
          slots_.pop_back();
          throw;
        }
      }
    } catch (const std::system_error&) {
      return false;
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }

  void run(int count, const Body& body) {
    body_ = &body;
    count_ = count;
    std::fegetenv(&environment_);
    pending_.store(count - 1, std::memory_order_relaxed);
    for (int id = 1; id < count; ++id) post(*slots_[id - 1], kWork);
    call(0);
    spin_then_yield([this] { return pending_.load(std::memory_order_acquire) == 0; });
    if (failed_.load(std::memory_order_relaxed)) {
      failed_.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

  void stop() {
    for (auto& slot : slots_) post(*slot, kStop);
    for (auto& slot : slots_) slot->thread.join();
    slots_.clear();
  }

 private:
  enum State : int { kIdle, kSleeping, kWork, kStop };

  struct alignas(64) Slot {
    std::atomic<int> state{kIdle};
    std::mutex mutex;
    std::condition_variable awake;
    std::thread thread;
  };

  static void post(Slot& slot, State state) {
    if (slot.state.exchange(state, std::memory_order_acq_rel) != kSleeping) return;
    // The mutex is the sleeper's from its change to kSleeping until it waits: no wake-up is lost.
    {
      std::lock_guard<std::mutex> lock(slot.mutex);
    }
    slot.awake.notify_one();
  }

  static int await(Slot& slot) {
    const auto posted = [&slot] { return slot.state.load(std::memory_order_acquire) >= kWork; };
    if (!spin(kIdleSpins, posted)) {
      std::unique_lock<std::mutex> lock(slot.mutex);
      int idle = kIdle;
      if (slot.state.compare_exchange_strong(idle, kSleeping)) slot.awake.wait(lock, posted);
    }
    return slot.state.load(std::memory_order_acquire);
  }

  void work(Slot& slot, int id) {
    inside_team = true;
    while (await(slot) == kWork) {
      slot.state.store(kIdle, std::memory_order_relaxed);  // before pending_: the next post follows
      // Rounding and flushing of denormals are the caller's, so that bits don't depend on who
      // computes.
      std::fesetenv(&environment_);
      call(id);
      pending_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void call(int id) {
    try {
      (*body_)(id, count_);
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }

  std::atomic<bool> busy_{false};
  std::vector<std::unique_ptr<Slot>> slots_;  // of ids 1, 2, ...

  const Body* body_ = nullptr;
  int count_ = 0;
  std::fenv_t environment_;
  std::exception_ptr error_;
  alignas(64) std::atomic<bool> failed_{false};
  alignas(64) std::atomic<int> pending_{0};
};

// A pool is never freed: a thread that outlives main may still ask for it.
std::atomic<Pool*> current{nullptr};

// A forked child has the parent's pool without its threads; it leaves that alone and makes its own.
void forget_pool() { current.store(nullptr, std::memory_order_relaxed); }

struct Lifetime {
  Lifetime() { pthread_atfork(nullptr, nullptr, forget_pool); }
  ~Lifetime() {
    Pool* pool = current.load(std::memory_order_acquire);
    // Acquired for good: who comes later runs alone. A pool still at work is left to the exit
    // itself.
    if (pool && pool->acquire()) pool->stop();
  }
};

Pool& pool() {
  static Lifetime lifetime;
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool) return *pool;
  auto fresh = std::make_unique<Pool>();
  if (current.compare_exchange_strong(pool, fresh.get(), std::memory_order_acq_rel)) {
    return *fresh.release();
  }
  return *pool;
}

}  // namespace

void Barrier::wait() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin_then_yield([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

void run_team(int threads, const std::function<void(int id, int count)>& body) {
  const bool nested = inside_team;
  const Inside inside;
  if (threads > 1 && !nested) {
    Pool& team = pool();
    if (team.acquire()) {
      struct Release {
        Pool& pool;
        ~Release() { pool.release(); }
      } release{team};
      if (team.grow(threads - 1)) return team.run(threads, body);
    }
  }
  body(0, 1);
}

}  // namespace effnet_fast
