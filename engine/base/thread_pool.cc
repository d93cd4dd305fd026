// Worker threads with a spin-then-sleep wait and one shared count of tasks.
#include "engine/base/thread_pool.h"

#include <algorithm>

#include "engine/base/worker_index.h"

namespace sage {
namespace {

// About 100 microseconds of spinning before a worker sleeps: longer than the gap between two operators of a step,
// far shorter than the gap between two requests.
constexpr int kSpinsBeforeSleep = 4000;
// The caller sleeps sooner or later too: the worker it waits for may need its core.
constexpr int kSpinsForTasks = 8000;

constexpr uint64_t kJob = uint64_t{1} << 32;
constexpr uint64_t kLeft = kJob - 1;

thread_local int worker_index = 0;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

int WorkerIndex() { return worker_index; }

ThreadPool::ThreadPool(int threads) : size_(std::max(1, threads)) {
  for (int worker = 1; worker < size_; ++worker) {
    workers_.emplace_back([this, worker] { WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Drain(int worker) {
  int64_t finished = 0, tasks = 0;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & kLeft) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire)) continue;
    tasks = tasks_.load(std::memory_order_relaxed);
    (*body_.load(std::memory_order_relaxed))(tasks - static_cast<int64_t>(ticket & kLeft), worker);
    ++finished;
    ticket = ticket_.load(std::memory_order_acquire);
  }
  if (finished == 0) return;
  // What a worker took is of one job: the next one begins only when this count is complete.
  if (done_.fetch_add(finished) + finished == tasks && caller_sleeps_.load()) {
    { std::lock_guard<std::mutex> lock(done_mutex_); }
    all_done_.notify_one();
  }
}

void ThreadPool::WorkerLoop(int worker) {
  worker_index = worker;
  uint64_t seen = 0;
  int spins = 0;
  ReadAhead::Cursor ahead;
  while (!stop_.load(std::memory_order_relaxed)) {
    const uint64_t ticket = ticket_.load(std::memory_order_acquire);
    if ((ticket & kLeft) != 0) {
      Drain(worker);
      spins = 0;
      continue;
    }
    if (ticket != seen) {  // a job that came and went
      seen = ticket;
      spins = 0;
    }
    if (read_ahead_.Step(worker, size(), &ahead)) continue;
    if (++spins < kSpinsBeforeSleep) {
      Pause();
      continue;
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return ticket_.load() != seen || stop_.load(); });
    sleepers_.fetch_sub(1);
    spins = 0;
  }
}

void ThreadPool::WaitForTasks(int64_t tasks) {
  for (int spins = 0; spins < kSpinsForTasks; ++spins) {
    if (done_.load(std::memory_order_acquire) == tasks) return;
    if (!read_ahead_.Step(0, size(), &caller_ahead_)) Pause();
  }
  std::unique_lock<std::mutex> lock(done_mutex_);
  caller_sleeps_.store(true);
  all_done_.wait(lock, [&] { return done_.load() == tasks; });
  caller_sleeps_.store(false);
}

void ThreadPool::Run(int64_t tasks, absl::FunctionRef<void(int64_t, int)> body) {
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  std::lock_guard<std::mutex> run_lock(run_mutex_);
  // Nobody holds a task of the job before, so nobody reads these fields.
  tasks_.store(tasks, std::memory_order_relaxed);
  body_.store(&body, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) & ~kLeft) + kJob;
  ticket_.store(job | static_cast<uint64_t>(tasks));
  if (sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
  }
  Drain(0);
  WaitForTasks(tasks);
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
