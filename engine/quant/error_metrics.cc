// Error metrics between a reference and its quantized copy.
#include "engine/quant/error_metrics.h"

#include <cmath>
#include <limits>

namespace sage {

ErrorStats MeasureError(const float* reference, const float* quantized, int64_t count) {
  double error = 0, energy = 0;
  ErrorStats stats;
  for (int64_t i = 0; i < count; ++i) {
    const double x = reference[i], difference = static_cast<double>(quantized[i]) - x;
    error += difference * difference;
    energy += x * x;
    // A NaN is kept: nothing compares greater than it afterwards.
    if (std::fabs(difference) > stats.max_abs || std::isnan(difference)) stats.max_abs = std::fabs(difference);
  }
  if (count > 0) stats.mse = error / static_cast<double>(count);
  if (error == 0) return stats;
  stats.relative_l2 = energy == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(error / energy);
  return stats;
}

}  // namespace sage
