// A fixed set of worker threads for data-parallel steps. Workers spin briefly between jobs of a step (a decode step
// hands out hundreds of jobs a few microseconds apart) and then sleep, so an idle daemon costs nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace sage {

class ThreadPool {
 public:
  // `threads` counts the calling thread; at least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(task, worker) for task in [0, tasks), worker in [0, size()); returns when all are done. Tasks are handed
  // out by an atomic counter, so which worker runs a task is not fixed: results must not depend on it. Not reentrant;
  // one caller at a time (concurrent callers are serialised).
  void Run(int64_t tasks, absl::FunctionRef<void(int64_t task, int worker)> body);

  // Cuts [0, n) into contiguous ranges of at least `grain` items, about one to four a worker.
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body);

 private:
  struct Job;
  void WorkerLoop(int worker);
  static void Drain(Job& job, int worker);

  std::vector<std::thread> workers_;
  std::mutex run_mutex_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::unique_ptr<Job> job_;
};

}  // namespace sage
