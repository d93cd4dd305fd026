// How a product is cut over threads: by outputs, never along K.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/api/step_context.h"
#include "engine/base/worker_index.h"

namespace sage::cpu {

// Below this many multiply-adds a product is not worth waking another thread for.
constexpr int64_t kInlineWork = 32 * 1024;

// From so many multiply-adds a unit on, a product has many rows.
constexpr int64_t kUnitOfRows = 1 << 20;

// Pieces [0, count) in a run of neighbours for each thread, so that a thread streams consecutive weights. Who has done
// its own run takes from the others'.
class PieceRuns {
 public:
  PieceRuns(int64_t count, int64_t threads) : runs_(static_cast<size_t>(threads)) {
    for (int64_t t = 0; t < threads; ++t) {
      runs_[static_cast<size_t>(t)].next.store(count * t / threads, std::memory_order_relaxed);
      runs_[static_cast<size_t>(t)].end = count * (t + 1) / threads;
    }
  }
  // A piece that nobody has taken; to be called `count` times in all.
  int64_t Take() {
    for (size_t i = static_cast<size_t>(WorkerIndex()) % runs_.size();;) {
      Run& run = runs_[i];
      if (run.next.load(std::memory_order_relaxed) < run.end) {
        const int64_t piece = run.next.fetch_add(1, std::memory_order_relaxed);
        if (piece < run.end) return piece;
      }
      i = i + 1 == runs_.size() ? 0 : i + 1;
    }
  }

 private:
  struct alignas(64) Run {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Run> runs_;
};

// Cuts `units` of outputs over the threads: many pieces a thread, because cores are not equally fast from moment to
// moment. In a group the body is copied and runs with the others', so it must hold what it needs by value.
template <typename Body>
void SplitOutputs(StepContext& ctx, int64_t units, int64_t work, const Body& body) {
  const int64_t threads = ctx.threads->size();
  if (threads == 1 || work < kInlineWork) {
    body(0, units);
    return;
  }
  // Many rows share what a piece's first outputs brought into the caches: fewer pieces then.
  const bool fine = work > 256 * kInlineWork && work / units < kUnitOfRows;
  const int64_t pieces = std::min(units, threads * (fine ? 64 : 8));
  const auto run = [units, pieces](const Body& part, PieceRuns& runs) {
    const int64_t piece = runs.Take();
    part(units * piece / pieces, units * (piece + 1) / pieces);
  };
  if (ctx.group != nullptr) {
    const auto runs = std::make_shared<PieceRuns>(pieces, threads);
    return ctx.group->Add(pieces, [run, runs, body](int64_t) { run(body, *runs); });
  }
  PieceRuns runs(pieces, threads);
  ctx.threads->Run(pieces, [&](int64_t, int) { run(body, runs); });
}

}  // namespace sage::cpu
