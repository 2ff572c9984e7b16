// The thread pool: who runs, how workers meet, what happens to exceptions, forks and second
// callers.
#include <sys/wait.h>
#include <unistd.h>

#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "effnet_fast/team.h"

namespace effnet_fast::test {
namespace {

// How often each id ran, and the count that each was told; only ids below `threads` may run.
struct Roll {
  explicit Roll(int threads) : times(threads), counts(threads) {}
  void run(int threads) {
    run_team(threads, [this](int id, int count) {
      ++times.at(id);
      counts.at(id) = count;
    });
  }
  std::vector<int> times, counts;
};

int count_of_a_team(int threads) {
  Roll roll(threads);
  roll.run(threads);
  return roll.counts[0];
}

EFFNET_FAST_TEST(team_runs_every_id_once) {
  for (const int threads : {1, 2, 5, 3, 8}) {
    Roll roll(threads);
    for (int repeat = 0; repeat < 50; ++repeat) roll.run(threads);
    CHECK(roll.times == std::vector<int>(threads, 50), format("%d threads", threads));
    CHECK(roll.counts == std::vector<int>(threads, threads), format("%d threads", threads));
  }
}

EFFNET_FAST_TEST(team_takes_threads_below_one_as_one) {
  for (const int threads : {0, -3}) {
    int calls = 0;
    run_team(threads, [&](int id, int count) { calls += id == 0 && count == 1; });
    CHECK(calls == 1, format("%d threads", threads));
  }
}

EFFNET_FAST_TEST(team_wakes_sleeping_workers) {
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // past the workers' spinning
    Roll roll(4);
    roll.run(4);
    CHECK(roll.times == std::vector<int>(4, 1), format("repeat %d", repeat));
  }
}

EFFNET_FAST_TEST(barrier_separates_rounds) {
  constexpr int kRounds = 100;
  for (const int threads : {2, 3, 13}) {  // 13: more than the cores of a small machine
    Barrier barrier(threads);
    std::vector<int> round(threads, 0);
    std::vector<int> stale(threads, 0);
    run_team(threads, [&](int id, int count) {
      for (int r = 1; r <= kRounds; ++r) {
        round[id] = r;
        barrier.wait();
        for (int other = 0; other < count; ++other) stale[id] += round[other] != r;
        barrier.wait();
      }
    });
    CHECK(round == std::vector<int>(threads, kRounds), format("%d threads", threads));
    CHECK(stale == std::vector<int>(threads, 0), format("%d threads", threads));
  }
}

EFFNET_FAST_TEST(team_passes_exceptions_to_the_caller) {
  for (const int thrower : {0, 2}) {
    std::string caught;
    try {
      run_team(3, [&](int id, int) {
        if (id == thrower) throw std::runtime_error(format("from %d", id));
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    CHECK(caught == format("from %d", thrower), "caught: " + caught);
    CHECK(count_of_a_team(3) == 3, "the pool is free and whole after an exception");
  }
}

EFFNET_FAST_TEST(nested_team_runs_alone) {
  for (const int threads : {1, 3}) {
    std::vector<int> counts(threads, 0);
    run_team(threads, [&](int id, int) { counts[id] = count_of_a_team(4); });
    CHECK(counts == std::vector<int>(threads, 1), format("%d threads", threads));
  }
  CHECK(count_of_a_team(4) == 4, "after the nested calls");
}

EFFNET_FAST_TEST(second_caller_runs_alone) {
  int second = 0;
  run_team(2, [&](int id, int) {
    if (id == 0) std::thread([&] { second = count_of_a_team(4); }).join();
  });
  CHECK(second == 1, format("%d workers", second));
}

EFFNET_FAST_TEST(callers_at_once_each_get_their_work_done) {
  constexpr int kCallers = 3, kRepeats = 200, kItems = 64;
  std::vector<int64_t> sums(kCallers, 0);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int repeat = 0; repeat < kRepeats; ++repeat) {
        std::vector<int64_t> items(kItems, 0);
        run_team(3, [&](int id, int count) {
          const Range mine = share(kItems, id, count);
          for (int64_t i = mine.begin; i < mine.end; ++i) items[i] += i;
        });
        for (const int64_t item : items) sums[caller] += item;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  const int64_t expected = int64_t{kRepeats} * kItems * (kItems - 1) / 2;
  CHECK(sums == std::vector<int64_t>(kCallers, expected), "a caller's items");
}

EFFNET_FAST_TEST(workers_round_as_the_caller_does) {
  std::vector<int> modes(3, -1);
  std::fesetround(FE_TOWARDZERO);
  run_team(3, [&](int id, int) { modes[id] = std::fegetround(); });
  std::fesetround(FE_TONEAREST);
  CHECK(modes == std::vector<int>(3, FE_TOWARDZERO), "rounding modes");
}

// ThreadSanitizer lets no thread start after a fork of a process that has several; qemu-user 7.2
// fails an assertion of its own there.
#if !defined(__SANITIZE_THREAD__) && !defined(EFFNET_FAST_EMULATED)
EFFNET_FAST_TEST(forked_child_has_a_pool_of_its_own) {
  CHECK(count_of_a_team(3) == 3, "the parent, before");
  const pid_t child = fork();
  if (child == 0) {
    Roll roll(3);
    roll.run(3);
    _exit(roll.times == std::vector<int>(3, 1) && roll.counts[0] == 3 ? 0 : 1);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child, "the child");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, format("the child's status is %d", status));
  CHECK(count_of_a_team(3) == 3, "the parent, after");
}

#if !defined(__SANITIZE_ADDRESS__)  // its leak check looks for the parent's threads in the child
EFFNET_FAST_TEST(forked_child_exits_cleanly) {
  std::fflush(stdout);  // or the child's exit would write it once more
  const pid_t child = fork();
  if (child == 0) {
    // exit, not _exit: static destructors run, over a pool whose threads stayed in the parent.
    run_team(2, [](int, int) {});
    std::exit(7);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child, "the child");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, format("the child's status is %d", status));
}
#endif
#endif

}  // namespace
}  // namespace effnet_fast::test
