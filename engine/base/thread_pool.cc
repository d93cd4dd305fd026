// Worker threads with a spin-then-sleep wait and one shared task counter.
#include "engine/base/thread_pool.h"

#include <algorithm>
#include <chrono>

namespace sage {
namespace {

// About 100 microseconds of spinning before a worker sleeps: longer than the gap between two operators of a step,
// far shorter than the gap between two requests.
constexpr int kSpinsBeforeSleep = 4000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

// The job lives as long as the pool; fields are published by generation_.
struct ThreadPool::Job {
  std::atomic<int64_t> next{0};
  int64_t tasks = 0;
  std::atomic<int> active{0};
  const absl::FunctionRef<void(int64_t, int)>* body = nullptr;
};

ThreadPool::ThreadPool(int threads) : job_(std::make_unique<Job>()) {
  for (int worker = 1; worker < std::max(1, threads); ++worker) {
    workers_.emplace_back([this, worker] { WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Drain(Job& job, int worker) {
  while (true) {
    const int64_t task = job.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.tasks) return;
    (*job.body)(task, worker);
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint64_t seen = 0;
  while (true) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && !stop_.load(std::memory_order_relaxed)) {
      if (++spins < kSpinsBeforeSleep) {
        Pause();
        continue;
      }
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != seen || stop_.load(); });
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    Drain(*job_, worker);
    if (job_->active.fetch_sub(1, std::memory_order_acq_rel) == 1) job_->active.notify_one();
  }
}

void ThreadPool::Run(int64_t tasks, absl::FunctionRef<void(int64_t, int)> body) {
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  std::lock_guard<std::mutex> run_lock(run_mutex_);
  job_->next.store(0, std::memory_order_relaxed);
  job_->tasks = tasks;
  job_->body = &body;
  job_->active.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
  }
  Drain(*job_, 0);
  // A worker that has not got a core yet would be kept from it by spinning on: on a busy machine the caller sleeps.
  int active = 0;
  for (int spins = 0; (active = job_->active.load(std::memory_order_acquire)) != 0;) {
    if (++spins < kSpinsBeforeSleep) {
      Pause();
    } else {
      job_->active.wait(active, std::memory_order_acquire);
    }
  }
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (n <= 0) return;
  const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int64_t ranges = std::min<int64_t>(most, size() == 1 ? 1 : size() * 4);
  Run(ranges, [&](int64_t task, int) {
    const int64_t begin = n * task / ranges;
    const int64_t end = n * (task + 1) / ranges;
    if (begin < end) body(begin, end);
  });
}

}  // namespace sage
