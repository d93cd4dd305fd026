// What a calibration will take, before it starts: memory by part and multiply-adds, from shapes alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "engine/base/thread_pool.h"
#include "engine/runtime/calibrate_plan.h"

namespace sage {

struct CalibrationEstimate {
  int64_t tokens = 0;            // 0 for methods that look at no text
  int64_t activation_bytes = 0;  // hidden states and attended values of all texts
  int64_t layer_bytes = 0;       // weights of one layer as they are worked on
  int64_t statistics_bytes = 0;  // sums over the tokens of the widest input, and what solving on them takes
  int64_t table_bytes = 0;       // rotated embeddings and head, as they are written
  double operations = 0;         // floating-point operations of the whole run
  bool spill = false;            // activations go to a file: they would pass the cap or what the machine has

  int64_t peak_bytes() const {
    return (spill ? 0 : activation_bytes) + std::max(layer_bytes + statistics_bytes, table_bytes);
  }
};

// `samples` x `sequence_length` tokens are an upper bound: a small dataset has fewer.
CalibrationEstimate EstimateCalibration(const CalibrationPlan& plan, int64_t samples, int64_t sequence_length);

// Decides about spilling. RESOURCE_EXHAUSTED (CALIBRATION_EXCEEDS_MEMORY) when even without activations the peak passes
// max_memory (0 = no cap), INSUFFICIENT_MEMORY when it passes what is available (-1 = not known).
absl::Status FitIntoMemory(int64_t max_memory, int64_t available, CalibrationEstimate* estimate);

// Operations a second of this machine's matrix product on these threads, by a product of a few milliseconds.
double MeasureOperationsRate(ThreadPool& threads);

// "16384 tokens, 0.61 GiB at the peak (activations 0.12 GiB), about 3 min".
std::string EstimateText(const CalibrationEstimate& estimate, double seconds);

}  // namespace sage
