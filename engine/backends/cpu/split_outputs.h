// How a product is cut over threads: by outputs, never along K.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/api/step_context.h"

namespace sage::cpu {

// Below this many multiply-adds a product is not worth waking another thread for.
constexpr int64_t kInlineWork = 32 * 1024;

// Cuts `units` of outputs over the threads: several pieces a thread, because cores are not equally fast from moment to
// moment. In a group the body is copied and runs with the others', so it must hold what it needs by value.
template <typename Body>
void SplitOutputs(StepContext& ctx, int64_t units, int64_t work, const Body& body) {
  const int64_t threads = ctx.threads->size();
  if (threads == 1 || work < kInlineWork) {
    body(0, units);
    return;
  }
  const int64_t pieces = std::min(units, work > 64 * kInlineWork ? threads * 8 : threads * 2);
  const auto run = [units, pieces](const Body& part, int64_t piece) {
    const int64_t begin = units * piece / pieces, end = units * (piece + 1) / pieces;
    if (begin < end) part(begin, end);
  };
  if (ctx.group != nullptr) return ctx.group->Add(pieces, [run, body](int64_t piece) { run(body, piece); });
  ctx.threads->Run(pieces, [&](int64_t piece, int) { run(body, piece); });
}

}  // namespace sage::cpu
