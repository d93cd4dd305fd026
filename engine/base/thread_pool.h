// A fixed set of worker threads for data-parallel steps. Workers spin briefly between jobs of a step (a decode step
// hands out hundreds of jobs a few microseconds apart) and then sleep, so an idle daemon costs nothing.
//
// A job waits for its tasks, never for its workers: a worker that sleeps, or that the machine runs something else in
// place of, holds nothing up, and the caller does the work by itself.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/base/read_ahead.h"

namespace sage {

class ThreadPool {
 public:
  // `threads` counts the calling thread; at least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs body(task, worker) for task in [0, tasks), worker in [0, size()); returns when all are done. Tasks are handed
  // out in order to whoever comes first, so which worker runs a task is not fixed: results must not depend on it. Not
  // reentrant; one caller at a time (concurrent callers are serialised). At most 2^31 tasks.
  void Run(int64_t tasks, absl::FunctionRef<void(int64_t task, int worker)> body);

  // Cuts [0, n) into contiguous ranges of at least `grain` items, about one to four a worker.
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body);

  // What waiting threads ask of the memory.
  ReadAhead& read_ahead() { return read_ahead_; }

 private:
  using Body = absl::FunctionRef<void(int64_t, int)>;
  void WorkerLoop(int worker);
  // Takes tasks of the current job until none is left.
  void Drain(int worker);
  void WaitForTasks(int64_t tasks);

  const int size_;  // workers begin to run while others are still being made
  std::vector<std::thread> workers_;
  std::mutex run_mutex_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;  // of workers
  std::mutex done_mutex_;
  std::condition_variable all_done_;  // of the caller
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};

  // The job in the upper half, how many of its tasks nobody has taken in the lower. Who counts a task down has it, and
  // the job's fields stay as they are until that task is done.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> tasks_{0};
  std::atomic<const Body*> body_{nullptr};
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<bool> caller_sleeps_{false};
  ReadAhead::Cursor caller_ahead_;  // with run_mutex_
  ReadAhead read_ahead_;
};

}  // namespace sage
