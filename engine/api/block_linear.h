// Weights kept as ggml blocks exactly as in a GGUF file: shared by the gguf strategies. Stored as "blocks" U8
// [N, row bytes].
#pragma once

#include <memory>
#include <utility>

#include "engine/api/stored_tensors.h"
#include "engine/quant/ggml_blocks.h"

namespace sage::linear_strategies {

template <const char* kName, GgmlType kType>
struct BlockLinear {
  // Q4_1 stores a minimum whatever `symmetric` says (true is that field's default, so it cannot mean "asked for").
  static constexpr bool kHasOffset = kType == GgmlType::kQ4_1;

  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    if ((spec.group_size != -1 && spec.group_size != 32) || K % 32 != 0) {
      return Refuse(kName, "GROUP_SIZE_MUST_DIVIDE_K",
                    absl::StrCat("group_size must be 32 (or -1, which means it) and divide K, got K=", K,
                                 ", group_size=", spec.group_size),
                    {{"K", absl::StrCat(K)},
                     {"group_size", absl::StrCat(spec.group_size)},
                     {"allowed", K % 32 == 0 ? "32" : ""}});
    }
    if (spec.act_order) return Refuse(kName, "ACT_ORDER_NOT_SUPPORTED", "act_order must be false, got true");
    if (spec.clip_ratio != 0 || (!spec.symmetric && !kHasOffset)) {
      return Refuse(kName, "FIELD_NOT_SUPPORTED",
                    absl::StrCat("clip_ratio must be 0", kHasOffset ? "" : " and symmetric true",
                                 ": the block format fixes its grid, got clip_ratio=", spec.clip_ratio,
                                 ", symmetric=", spec.symmetric));
    }
    return RefuseFloatFields(kName, spec);
  }

  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
    SAGE_RETURN_IF_ERROR(Check(spec, weight.dim(0), weight.dim(1)));
    if (!IsEmpty(plan)) {
      return Refuse(kName, "PLAN_NOT_SUPPORTED", "scales and codes follow ggml's reference rules, got a plan");
    }
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.spec.group_size = 32;
    stored.spec.symmetric = !kHasOffset;
    stored.spec.scale_dtype = DType::kF16;
    stored.N = weight.dim(0);
    stored.K = weight.dim(1);
    const int64_t row_bytes = GgmlRowBytes(kType, stored.K);
    SAGE_ASSIGN_OR_RETURN(Tensor * blocks, AddTensor(&stored, "blocks", DType::kU8, {stored.N, row_bytes}));
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) -> absl::Status {
      const absl::Status status = QuantizeBlocks(kType, row, stored.K, blocks->as<uint8_t>() + n * row_bytes);
      return status.ok() ? status : Annotate(status, absl::StrCat(kName, ": row ", n));
    }));
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const TensorView blocks, Open(stored));
    return DequantizeBlocks(kType, blocks.as<uint8_t>() + n_begin * blocks.dim(1), (n_end - n_begin) * stored.K, out);
  }

  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored,
                                                           std::shared_ptr<const void> keep_alive,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, std::move(keep_alive)));
    SAGE_ASSIGN_OR_RETURN(const TensorView blocks, Open(stored));
    weight.blocks.type = std::string(FindGgmlType(kType)->name);
    weight.blocks.data = blocks.as<uint8_t>();
    weight.blocks.bytes = blocks.bytes;
    weight.blocks.in_map = stored.owned.empty();
    return backend.BindLinear(QueryOf(kName, stored, 32, !kHasOffset, priority), std::move(weight), threads);
  }

 private:
  static absl::StatusOr<TensorView> Open(const StoredLinear& stored) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, stored.N, stored.K));
    const int64_t row_bytes = GgmlRowBytes(kType, stored.K);
    if (row_bytes < 0) {
      return Refuse(kName, "ROW_NOT_WHOLE_BLOCKS", absl::StrCat("K must be a multiple of 32, got K=", stored.K));
    }
    return RequireTensor(stored, "blocks", {DType::kU8}, {stored.N, row_bytes});
  }
};

}  // namespace sage::linear_strategies
