// Static scales of a quantized KV cache: what all calibration tokens say of a layer's keys (after rope) and values.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/backend.h"
#include "engine/api/engine.h"
#include "engine/base/json.h"
#include "engine/base/thread_pool.h"
#include "engine/runtime/artifact_source.h"
#include "engine/solvers/activation_range.h"

namespace sage {

enum class KvGranularity { kTensor, kHead, kChannel };

// The KV part of a calibration's plan.
struct KvCalibration {
  std::string strategy;     // plug-in name
  bool calibrates = false;  // static scales from the dataset; otherwise the engine takes them from the data
  bool asymmetric = false;  // zero points, by channel only
  KvGranularity granularity = KvGranularity::kTensor;
  RangeSpec range;
  std::vector<int64_t> wide;  // layers that keep 16 bits
  int64_t sink_tokens = 0;

  bool IsWide(int64_t layer) const;
  // What scales are stored in: the model's dtype as others do, f32 where nobody else reads them.
  DType ScaleDType(DType model) const;
  // kv_cache_scheme of compressed-tensors; null where it has no word for the plan.
  Json Scheme() const;
  // "kv_quant_plan" of sage_quant.json; `layers` holds what Describe gave for each.
  Json Manifest(const Json& layers) const;
};

// Resolves the words of a calibration. Errors name the field.
absl::StatusOr<KvCalibration> PlanKvCalibration(const CalibrationSpec& spec, const RangeSpec& range, int64_t layers);

// Sums over the samples of one layer. Units (heads, channels) are independent, so threads change nothing.
class KvStatistics {
 public:
  KvStatistics(const KvCalibration& plan, int KH, int D, ThreadPool& threads);
  // Positions [0, M) of one sample; keys (rotary pairs (i, i + D / 2)), v [M, KH * D].
  absl::Status AddSample(const float* keys, const float* v, int64_t M);
  // Scales as they will be stored, in `dtype`.
  absl::StatusOr<KvLayerScales> Solve(DType dtype) const;
  double absmax(bool key) const;

 private:
  const KvCalibration& plan_;
  const int64_t KH_, D_;
  ThreadPool& threads_;
  std::vector<RangeObserver> k_, v_;
};

// Tensors of a layer's scales under the names that readers expect, see kv_plan.cc.
absl::StatusOr<std::vector<NamedTensor>> KvScaleTensors(const KvCalibration& plan, const KvLayerScales& scales,
                                                        int64_t layer, DType dtype);
// For the manifest: {layer, k{absmax, scale[]}, v{...}}; of channels the least and the largest scale.
Json DescribeKvScales(const KvLayerScales& scales, int64_t layer, double k_absmax, double v_absmax);

}  // namespace sage
