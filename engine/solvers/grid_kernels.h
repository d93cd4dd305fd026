// Inner loops over weights on the integer grid, one version a processor tier: the error of a group on a grid, and the
// search for the next code that wants to move. Lanes have a fixed order and nothing is fused, so every tier gives the
// same bits.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "engine/quant/integer_grid.h"

namespace sage {

// Values that are looked at side by side; the arrays of a CodeRow are padded to a multiple.
constexpr int64_t kGridLanes = 16;

// A row of codes and what each would have to know to move, in the order in which they are asked.
struct CodeRow {
  const float* value;     // what the code means now
  const float* scale;     // of its group
  const float* zero;      // of its group
  const float* energy;    // diagonal of the Gram matrix; 0 keeps the code where it is
  const float* gradient;  // half the derivative of the loss
};

struct GridKernels {
  const char* name;
  // sum of importance (null = one) * (w - q)^2 over `count` weights, where q is the nearest value of the grid. Stops
  // when the sum passes `bound`: a worse grid shows it after a few weights.
  double (*squared_error)(const float* weights, const float* importance, int64_t count, const IntegerGrid& grid,
                          int bits, double bound);
  // The first place in [begin, count) whose code would lower the loss by moving to the one nearest its minimum, and
  // that code; `count` when there is none.
  int64_t (*next_move)(const CodeRow& row, int64_t begin, int64_t count, int bits, int8_t* code);
};

const GridKernels& HostGridKernels();
// All that this machine can run, for tests; the plain one first.
absl::Span<const GridKernels* const> RunnableGridKernels();

}  // namespace sage
