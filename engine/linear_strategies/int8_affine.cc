// Eight-bit codes with a scale and an offset for every 16 or 32 inputs: what K-quants, IQ4 and Q5 tensors of a GGUF
// become, without loss, when they are bound. Not a method to quantize with.
//
//   codes   I8  [N, K]
//   scale   F32 [N, G]
//   offset  F32 [N, G]  optional
// w = scale * code + offset: product rounded to f32, then the sum. Or, as a file has them:
//   blocks.<ggml type>  U8 [N, bytes of a row]  e.g. "blocks.q6_k"
// which are taken apart when they are read: a table of embeddings stays in the map.
#include <cstring>
#include <mutex>

#include "absl/strings/match.h"
#include "engine/api/stored_tensors.h"
#include "engine/quant/ggml_blocks.h"

namespace sage::linear_strategies {
namespace {

constexpr char kName[] = "int8_affine";

absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
  SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
  if ((spec.group_size != 16 && spec.group_size != 32) || K % spec.group_size != 0) {
    return Refuse(kName, "GROUP_SIZE_MUST_DIVIDE_K",
                  absl::StrCat("group_size must be 16 or 32 and divide K, got K=", K, ", group_size=", spec.group_size),
                  {{"K", absl::StrCat(K)}, {"group_size", absl::StrCat(spec.group_size)}, {"allowed", "32, 16"}});
  }
  return RefuseFloatFields(kName, spec);
}

absl::StatusOr<StoredLinear> Quantize(const TensorView&, const LinearSpec&, const LayerPlan&, ThreadPool&) {
  return MakeError(
      absl::StatusCode::kUnimplemented, "READ_ONLY_STRATEGY",
      "int8_affine: holds tensors repacked from GGUF and quantizes nothing; ask for int8_w8a16 or int4_w4a16");
}

constexpr char kBlocks[] = "blocks.";

struct Parts {
  int64_t G = 0;
  TensorView codes, scale, offset;
  const GgmlTypeInfo* type = nullptr;  // of `blocks`; null when the parts lie apart
  TensorView blocks;
};

absl::Status OpenBlocks(const StoredLinear& stored, const std::string& name, Parts& parts) {
  parts.type = FindGgmlType(std::string_view(name).substr(sizeof kBlocks - 1));
  if (parts.type == nullptr || parts.type->group != stored.spec.group_size ||
      parts.type->has_offset == stored.spec.symmetric) {
    return Refuse(kName, "BAD_BLOCKS",
                  absl::StrCat(name, " must be of a ggml type with scales for ", stored.spec.group_size, " inputs"));
  }
  const int64_t row_bytes = GgmlRowBytes(parts.type->type, stored.K);
  if (row_bytes < 0) {
    return Refuse(kName, "ROW_NOT_WHOLE_BLOCKS",
                  absl::StrCat(name, ": K must be a multiple of ", parts.type->block, ", got ", stored.K));
  }
  SAGE_ASSIGN_OR_RETURN(parts.blocks, RequireTensor(stored, name, {DType::kU8}, {stored.N, row_bytes}));
  return absl::OkStatus();
}

absl::StatusOr<Parts> Open(const StoredLinear& stored) {
  SAGE_RETURN_IF_ERROR(Check(stored.spec, stored.N, stored.K));
  Parts parts;
  parts.G = stored.K / stored.spec.group_size;
  for (const auto& [name, view] : stored.tensors) {
    if (!absl::StartsWith(name, kBlocks)) continue;
    SAGE_RETURN_IF_ERROR(OpenBlocks(stored, name, parts));
    return parts;
  }
  SAGE_ASSIGN_OR_RETURN(parts.codes, RequireTensor(stored, "codes", {DType::kI8}, {stored.N, stored.K}));
  SAGE_ASSIGN_OR_RETURN(parts.scale, RequireTensor(stored, "scale", {DType::kF32}, {stored.N, parts.G}));
  if (stored.tensors.count("offset") != 0) {
    SAGE_ASSIGN_OR_RETURN(parts.offset, RequireTensor(stored, "offset", {DType::kF32}, {stored.N, parts.G}));
  }
  return parts;
}

absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
  SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
  SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
  if (parts.type != nullptr) {
    const int64_t row_bytes = parts.blocks.dim(1);
    return DequantizeBlocks(parts.type->type, parts.blocks.as<uint8_t>() + n_begin * row_bytes,
                            (n_end - n_begin) * stored.K, out);
  }
  const int64_t group = stored.spec.group_size;
  for (int64_t i = n_begin * parts.G; i < n_end * parts.G; ++i) {
    const int8_t* codes = parts.codes.as<int8_t>() + i * group;
    const float scale = LoadFloat(parts.scale, i);
    for (int64_t k = 0; k < group; ++k) *out++ = scale * static_cast<float>(codes[k]);
    if (parts.offset.empty()) continue;
    const float offset = LoadFloat(parts.offset, i);
    for (int64_t k = 0; k < group; ++k) out[k - group] += offset;
  }
  return absl::OkStatus();
}

// Codes, scales and offsets of every row.
absl::Status FillInteger(const StoredLinear& stored, const Parts& parts, ThreadPool& threads, IntegerWeight& out) {
  const size_t count = static_cast<size_t>(stored.N * parts.G);
  out.scale.resize(count);
  if (parts.type == nullptr) {
    out.codes.assign(parts.codes.as<int8_t>(), parts.codes.as<int8_t>() + parts.codes.bytes);
    std::memcpy(out.scale.data(), parts.scale.data, parts.scale.bytes);
    if (parts.offset.empty()) return absl::OkStatus();
    out.offset.resize(count);
    std::memcpy(out.offset.data(), parts.offset.data, parts.offset.bytes);
    return absl::OkStatus();
  }
  out.codes.resize(static_cast<size_t>(stored.N * stored.K));
  if (parts.type->has_offset) out.offset.resize(count);
  const int64_t row_bytes = parts.blocks.dim(1);
  std::mutex mutex;
  absl::Status status;
  threads.ParallelFor(stored.N, 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const absl::Status row = RepackToAffine8(parts.type->type, parts.blocks.as<uint8_t>() + n * row_bytes, stored.K,
                                               out.codes.data() + n * stored.K, out.scale.data() + n * parts.G,
                                               out.offset.empty() ? nullptr : out.offset.data() + n * parts.G);
      if (row.ok()) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      status = row;
    }
  });
  return status;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored, std::shared_ptr<const void> keep_alive,
                                                  const Backend& backend, Priority priority, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, nullptr));  // everything is copied
  SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
  IntegerWeight& integer = weight.integer;
  integer.bits = 8;
  integer.codes_signed = true;
  integer.group_size = stored.spec.group_size;
  SAGE_RETURN_IF_ERROR(FillInteger(stored, parts, threads, integer));
  const char* from = parts.type == nullptr ? "scale" : "blocks";
  SAGE_RETURN_IF_ERROR(CheckFinite(stored, from, integer.scale));
  SAGE_RETURN_IF_ERROR(CheckFinite(stored, parts.type == nullptr ? "offset" : from, integer.offset));
  // The same arithmetic as int8_w8a16, so its kernels serve it.
  return backend.BindLinear(QueryOf("int8_w8a16", stored, integer.group_size, integer.offset.empty(), priority),
                            std::move(weight), threads);
}

}  // namespace

extern const LinearStrategyDef kInt8Affine;
const LinearStrategyDef kInt8Affine = {
    .name = kName,
    .summary = "8-bit codes, scale and offset for 16 or 32 inputs: GGUF K-quants, IQ4 and Q5, repacked without loss",
    .weight_dtype = "affine8",
    .weight_bits = 8,
    .activation_bits = 16,
    .quantizes = false,
    .tolerance = 1e-2,
    .check = Check,
    .quantize = Quantize,
    .dequantize_rows = DequantizeRows,
    .bind = Bind,
};

}  // namespace sage::linear_strategies
