// Which checkpoint format an artifact is written as, and which strategy stores a scheme in it.
#pragma once

#include <string>

#include "engine/api/checkpoint_format.h"
#include "engine/api/linear_strategy.h"

namespace sage {

// The written format of that name ("compressed-tensors" is compressed_tensors, "fp8" too where the
// weights are fp8); "" is the one that holds the tensors of
// `strategy`. UNIMPLEMENTED (UNSUPPORTED_OUTPUT_FORMAT) lists the formats.
absl::StatusOr<const CheckpointFormatDef*> FindOutputFormat(const std::string& word, const LinearStrategyDef& strategy);

bool FormatHolds(const CheckpointFormatDef& format, const LinearStrategyDef& strategy);

// `strategy` where the format holds it, else the one of the same bits that it holds ("int4_w4a16" as gptq is
// gptq_w4a16). UNIMPLEMENTED (UNSUPPORTED_OUTPUT_FORMAT) when there is none.
absl::StatusOr<const LinearStrategyDef*> StrategyIn(const CheckpointFormatDef& format,
                                                    const LinearStrategyDef& strategy);

// Scales, zeros, codes and groups of a layer stored by a strategy of the integer grid, as a plan for another.
// INVALID_ARGUMENT for layers that are no integers.
absl::StatusOr<LayerPlan> PlanOfStored(const StoredLinear& stored, ThreadPool& threads);

}  // namespace sage
