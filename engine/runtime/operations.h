// The long operations behind the façade: calibrate, convert, report, verify. Each blocks, checks `cancel` at least once
// a layer or window and reports progress; the Runtime of engine/report/runtime.cc calls them on its caller's thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "engine/base/cancel.h"
#include "engine/base/json.h"
#include "engine/base/thread_pool.h"

namespace sage {

// Quantizes a model into an artifact folder, one layer at a time; an interrupted run continues at the first missing
// layer and ends with the same bytes. Progress unit "layers".
absl::StatusOr<CalibrationResult> CalibrateModel(const CalibrationSpec& spec, ThreadPool& threads,
                                                 const CancelToken& cancel, const ProgressFn& progress);

// Rewrites any checkpoint that can be read as a Hugging Face folder of another format, reloads it and compares every
// value. Progress unit "layers".
absl::StatusOr<ConvertResult> ConvertArtifact(const ConvertSpec& spec, ThreadPool& threads, const CancelToken& cancel,
                                              const ProgressFn& progress);

// What quantization cost and gained, against the reference on the same tokens and this machine. Progress unit
// "windows". Defined in engine/report.
absl::StatusOr<Json> BuildReport(const ReportSpec& spec, ThreadPool& threads, const CancelToken& cancel,
                                 const ProgressFn& progress);

// Number of stored tensors whose bytes agree with sage_quant.json; DATA_LOSS names the first that does not.
absl::StatusOr<int64_t> VerifyArtifactFolder(const std::string& path, const CancelToken& cancel);

}  // namespace sage
