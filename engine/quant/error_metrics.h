// How far quantized values are from the original: sums in f64, in index order, so that the result never depends on
// threads.
#pragma once

#include <cstdint>

namespace sage {

struct ErrorStats {
  double relative_l2 = 0;  // ||q - x|| / ||x||; 0 when both are zero, infinite when only x is
  double max_abs = 0;      // max |q - x|
  double mse = 0;          // mean (q - x)^2
};

ErrorStats MeasureError(const float* reference, const float* quantized, int64_t count);

}  // namespace sage
