// A bounded queue served by a fixed number of threads: where everything that blocks runs, away from the RPC threads.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace sage::server {

class WorkQueue {
 public:
  // `nice` is added to the threads' niceness (threads they start inherit it).
  WorkQueue(std::string name, int threads, size_t max_waiting, int nice = 0);
  ~WorkQueue();  // Close
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // False when the queue is full or closed; `work` is then not run.
  bool Submit(std::function<void()> work);
  // Runs what is queued, then ends the threads. Idempotent.
  void Close();

 private:
  void Loop(int nice);

  const std::string name_;
  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> waiting_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sage::server
