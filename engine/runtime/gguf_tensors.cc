// Chooses types and makes the bytes: blocks of a GGUF are copied, integer codes kept where a type holds them exactly,
// everything else is dequantized and quantized by ggml's rules.
#include "engine/runtime/gguf_tensors.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/api/gguf_names.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"
#include "engine/quant/ggml_quantize.h"
#include "engine/quant/integer_grid.h"
#include "engine/runtime/gguf_keys.h"
#include "engine/runtime/output_format.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

constexpr char kRopeFactors[] = "rope_freqs.weight";

bool IsFloatType(GgmlType type) { return type == GgmlType::kF32 || type == GgmlType::kF16 || type == GgmlType::kBF16; }

GgmlType TypeOf(DType dtype) {
  return dtype == DType::kF16 ? GgmlType::kF16 : dtype == DType::kBF16 ? GgmlType::kBF16 : GgmlType::kF32;
}

std::vector<uint8_t> AsType(const float* values, int64_t count, GgmlType type) {
  std::vector<uint8_t> out(static_cast<size_t>(count) * (type == GgmlType::kF32 ? 4 : 2));
  if (type == GgmlType::kF32) {
    std::memcpy(out.data(), values, out.size());
    return out;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = type == GgmlType::kF16 ? FloatToF16(values[i]) : FloatToBF16(values[i]);
    std::memcpy(out.data() + 2 * i, &bits, 2);
  }
  return out;
}

// The smallest float type that keeps every value.
GgmlType ExactFloat(const float* values, int64_t count) {
  bool half = true, brain = true;
  for (int64_t i = 0; i < count && (half || brain); ++i) {
    uint32_t bits, again;
    std::memcpy(&bits, values + i, 4);
    const float f16 = F16ToFloat(FloatToF16(values[i]));
    std::memcpy(&again, &f16, 4);
    half = half && again == bits;
    brain = brain && (bits & 0xffffu) == 0;
  }
  return half ? GgmlType::kF16 : brain ? GgmlType::kBF16 : GgmlType::kF32;
}

bool SameValues(GgmlType type, const std::vector<uint8_t>& bytes, const float* values, int64_t N, int64_t K) {
  std::vector<float> row(static_cast<size_t>(K));
  const int64_t row_bytes = GgmlRowBytes(type, K);
  for (int64_t n = 0; n < N; ++n) {
    if (!DequantizeBlocks(type, bytes.data() + n * row_bytes, K, row.data()).ok()) return false;
    if (std::memcmp(row.data(), values + n * K, static_cast<size_t>(K) * 4) != 0) return false;
  }
  return true;
}

// Codes, scales and zeros of block b of row n, as EncodeBlock takes them.
bool EncodeRowBlock(GgmlType type, bool exact, const LayerPlan& plan, int64_t group, int bits, int64_t G, int64_t n,
                    int64_t begin, int64_t K, uint8_t* out) {
  int64_t g = begin / group;
  if (plan.g_idx.empty() && (begin + 31) / group != g) return false;
  if (!plan.g_idx.empty()) {
    g = plan.g_idx[static_cast<size_t>(begin)];
    for (int64_t k = begin; k < begin + 32; ++k) {
      if (plan.g_idx[static_cast<size_t>(k)] != g) return false;
    }
  }
  const size_t at = static_cast<size_t>(n * G + g);
  const int zero = plan.zero.empty() ? 0 : static_cast<int>(plan.zero[at]);
  int16_t codes[32];
  for (int k = 0; k < 32; ++k) {
    codes[k] = static_cast<int16_t>(plan.codes[static_cast<size_t>(n * K + begin + k)] - zero);
  }
  const auto encode = exact ? EncodeBlock : ggml::EncodeBlockRounded;
  return encode(type, codes, plan.scale[at], zero - MinCode(bits), out);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufTensors>> GgufTensors::Create(const ArtifactSource& source, const GgufScheme& scheme,
                                                                 ThreadPool& threads) {
  std::unique_ptr<GgufTensors> out(new GgufTensors(source, scheme, threads));
  SAGE_ASSIGN_OR_RETURN(const std::string arch, GgufArchitecture(source.config()));
  out->interleaved_ = arch == "llama";
  SAGE_ASSIGN_OR_RETURN(const bool interleaved, JsonBool(source.checkpoint().config(), "sage_rope_interleaved", false));
  if (source.is_gguf() && interleaved == out->interleaved_) {
    SAGE_ASSIGN_OR_RETURN(out->file_, GgufFile::Open(source.checkpoint().path()));
  }
  SAGE_RETURN_IF_ERROR(out->List());
  return out;
}

absl::Status GgufTensors::List() {
  const auto plain = [this](const TensorSlot& slot) {
    items_.push_back({GgufNameOfHf(slot.name), slot.name, slot.shape, std::nullopt});
  };
  const std::vector<TensorSlot> all = ListTensors(source_.config());
  for (const TensorSlot& slot : all) {
    if (slot.name == "model.embed_tokens.weight") plain(slot);
  }
  if (!GgufRopeFactors(source_.config()).empty()) {
    items_.push_back({kRopeFactors, "", {source_.config().D / 2}, std::nullopt});
  }
  for (int64_t shard = 0; shard < source_.shard_count(); ++shard) {
    for (const TensorSlot& slot : all) {
      const int64_t layer = LayerOfName(slot.name);
      const bool last = layer < 0 && shard + 1 == source_.shard_count();
      if ((layer == shard || last) && slot.name != "model.embed_tokens.weight") plain(slot);
    }
    for (const LinearSlot& slot : source_.ShardLinears(shard)) {
      const std::string name = slot.name + ".weight";
      items_.push_back({GgufNameOfHf(name), name, {slot.N, slot.K}, slot});
      SAGE_ASSIGN_OR_RETURN(const NamedTensor bias, source_.Bias(slot));
      if (!bias.view.empty()) {
        items_.push_back({GgufNameOfHf(slot.name + ".bias"), slot.name + ".bias", {slot.N}, slot});
      }
      SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, source_.Stored(slot));
      SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
      any_quantized_ = any_quantized_ || def->quantizes || !stored.tensors.count("weight");
    }
  }
  for (const Item& item : items_) {
    if (item.name.empty()) {
      return MakeError(absl::StatusCode::kUnimplemented, "GGUF_CANNOT_HOLD",
                       absl::StrCat("gguf: there is no name for '", item.hf_name, "'"));
    }
  }
  return absl::OkStatus();
}

const GgufTensor* GgufTensors::InSource(const std::string& name) const {
  if (file_ == nullptr) return nullptr;
  const auto it = file_->tensors().find(name);
  return it == file_->tensors().end() ? nullptr : &it->second;
}

absl::StatusOr<GgufData> GgufTensors::Encode(const Item& item) const {
  const bool weight = item.linear && item.shape.size() == 2;
  return weight ? EncodeLinear(item) : EncodePlain(item);
}

// As it is stored when that is a float, else as f32.
absl::StatusOr<NamedTensor> GgufTensors::ReadPlain(const Item& item) const {
  if (item.linear) return source_.Bias(*item.linear);
  const absl::StatusOr<TensorView> view = source_.checkpoint().GetTensor(item.hf_name);
  if (view.ok() && IsFloat(view->dtype) && view->dtype != DType::kF64) return NamedTensor{item.hf_name, *view, nullptr};
  const int64_t layer = LayerOfName(item.hf_name);
  SAGE_ASSIGN_OR_RETURN(std::vector<NamedTensor> all,
                        source_.PlainValues(layer < 0 ? source_.shard_count() - 1 : layer, threads_));
  for (NamedTensor& tensor : all) {
    if (tensor.name == item.hf_name) return std::move(tensor);
  }
  return MakeError(absl::StatusCode::kNotFound, "TENSOR_NOT_FOUND",
                   absl::StrCat(source_.checkpoint().path(), ": has no tensor '", item.hf_name, "'"));
}

// One-dimensional tensors are F32 (llama.cpp adds and multiplies by nothing else); embeddings keep their floats.
absl::StatusOr<GgufData> GgufTensors::EncodePlain(const Item& item) const {
  const int64_t count = item.shape.size() == 2 ? item.shape[0] * item.shape[1] : item.shape[0];
  if (item.name == kRopeFactors) {
    const std::vector<float> factors = GgufRopeFactors(source_.config());
    return GgufData{GgmlType::kF32, AsType(factors.data(), count, GgmlType::kF32), "floats", ""};
  }
  if (item.shape.size() == 2) {
    const GgufTensor* tensor = InSource(item.name);
    if (tensor != nullptr && !scheme_.mix && (!IsFloatType(scheme_.type) || scheme_.exact)) {
      return GgufData{tensor->type, {tensor->data, tensor->data + tensor->bytes}, "blocks copied", ""};
    }
  }
  SAGE_ASSIGN_OR_RETURN(const NamedTensor tensor, ReadPlain(item));
  std::vector<float> values(static_cast<size_t>(count));
  if (tensor.view.elements() != count) {
    return MakeError(absl::StatusCode::kInvalidArgument, "SHAPE_MISMATCH",
                     absl::StrCat(item.hf_name, ": must be ", ShapeText(item.shape), " by config.json, got ",
                                  ShapeText(tensor.view.shape)));
  }
  SAGE_RETURN_IF_ERROR(ToFloat(tensor.view, values.data()));
  if (item.shape.size() == 2) {
    if (scheme_.mix) {
      const bool head = source_.config().tied_embeddings;
      const GgmlType wanted = head ? WantedGgufType(scheme_, "lm_head", -1, source_.config().L) : scheme_.type;
      const GgmlType type = GgufTypeForRows(wanted, item.shape[1]);
      if (type != GgmlType::kF32) return Quantized(item, values.data(), type);
    }
    const bool floats = !scheme_.exact && !scheme_.mix && IsFloatType(scheme_.type);
    const GgmlType type = floats ? scheme_.type : TypeOf(tensor.view.dtype);
    return GgufData{type, AsType(values.data(), count, type), floats ? "floats" : "floats kept", ""};
  }
  if (interleaved_ && item.linear && (item.linear->kind == "q_proj" || item.linear->kind == "k_proj")) {
    const std::vector<float> before = values;
    for (int64_t n = 0; n < count; ++n) {
      values[static_cast<size_t>(n)] = before[static_cast<size_t>(GgufSourceRow(n, source_.config().D))];
    }
  }
  return GgufData{GgmlType::kF32, AsType(values.data(), count, GgmlType::kF32), "floats", ""};
}

absl::StatusOr<GgufData> GgufTensors::Quantized(const Item& item, const float* values, GgmlType type) const {
  const int64_t N = item.shape[0], K = item.shape[1], row_bytes = GgmlRowBytes(type, K);
  GgufData out{type, std::vector<uint8_t>(static_cast<size_t>(N * row_bytes)), "quantized", ""};
  std::vector<absl::Status> results(static_cast<size_t>(N));
  threads_.ParallelFor(N, 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = values + n * K;
      if (!std::all_of(row, row + K, [](float v) { return std::isfinite(v); })) {
        results[static_cast<size_t>(n)] = MakeError(absl::StatusCode::kInvalidArgument, "NON_FINITE_WEIGHT",
                                                    absl::StrCat("weights must be finite, row ", n, " is not"));
        continue;
      }
      results[static_cast<size_t>(n)] = QuantizeBlocks(type, row, K, out.bytes.data() + n * row_bytes);
    }
  });
  for (const absl::Status& status : results) {
    if (!status.ok()) return Annotate(status, item.hf_name);
  }
  return out;
}

// The stored codes themselves as `type`, when that holds every value, or all but scales that f16 rounds where `exact`
// is not asked for; nullopt otherwise.
absl::StatusOr<std::optional<GgufData>> GgufTensors::KeptCodes(const LinearSlot& slot, const StoredLinear& stored,
                                                               const float* values, GgmlType type, bool exact) const {
  const std::optional<GgufData> no;
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  if (!def->integer_grid || slot.K % 32 != 0) return no;
  SAGE_ASSIGN_OR_RETURN(const LayerPlan plan, PlanOfStored(stored, threads_));
  const int64_t G = static_cast<int64_t>(plan.scale.size()) / slot.N, row_bytes = GgmlRowBytes(type, slot.K);
  const int64_t group = stored.spec.group_size > 0 ? stored.spec.group_size : slot.K;
  if (row_bytes < 0 || G < 1) return no;
  GgufData out{type, std::vector<uint8_t>(static_cast<size_t>(slot.N * row_bytes)), "codes kept", ""};
  const int64_t block_bytes = FindGgmlType(type)->bytes;
  for (int64_t n = 0; n < slot.N; ++n) {
    for (int64_t b = 0; b < slot.K / 32; ++b) {
      uint8_t* block = out.bytes.data() + n * row_bytes + b * block_bytes;
      if (!EncodeRowBlock(type, exact, plan, group, def->weight_bits, G, n, 32 * b, slot.K, block)) return no;
    }
  }
  if (exact && !SameValues(type, out.bytes, values, slot.N, slot.K)) return no;
  if (!exact) out.note = "codes kept, scales rounded to f16";
  return std::optional<GgufData>(std::move(out));
}

absl::StatusOr<GgufData> GgufTensors::KeptFloats(const Item& item) const {
  const LinearSlot& slot = *item.linear;
  SAGE_ASSIGN_OR_RETURN(const Tensor weight, source_.Weight(slot, threads_));
  SAGE_ASSIGN_OR_RETURN(const TensorView dense, source_.DenseWeight(slot));
  const int64_t count = slot.N * slot.K;
  const GgmlType type = dense.empty() ? ExactFloat(weight.as<float>(), count) : TypeOf(dense.dtype);
  return GgufData{type, AsType(weight.as<float>(), count, type), "floats kept", ""};
}

absl::StatusOr<GgufData> GgufTensors::EncodeLinear(const Item& item) const {
  const LinearSlot& slot = *item.linear;
  const bool floats = !scheme_.exact && IsFloatType(scheme_.type), head = slot.layer < 0;
  const auto own = scheme_.modules.find(slot.name);
  const bool named = own != scheme_.modules.end(), kept_out = named && !own->second.has_value();
  const GgmlType wanted =
      named && !kept_out ? *own->second : WantedGgufType(scheme_, slot.kind, slot.layer, source_.config().L);
  if (const GgufTensor* tensor = InSource(item.name)) {
    if (scheme_.exact || kept_out || (head && !scheme_.mix && !floats && !named) ||
        (!floats && tensor->type == wanted)) {
      return GgufData{tensor->type, {tensor->data, tensor->data + tensor->bytes}, "blocks copied", ""};
    }
  }
  SAGE_ASSIGN_OR_RETURN(const StoredLinear stored, source_.Stored(slot));
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* def, FindLinearStrategy(stored.spec.strategy));
  const bool dense = !def->quantizes && stored.tensors.count("weight") > 0;
  SAGE_ASSIGN_OR_RETURN(const Tensor weight, source_.Weight(slot, threads_));
  const float* values = weight.as<float>();
  const int64_t count = slot.N * slot.K;
  GgufData out;
  if (kept_out) {
    SAGE_ASSIGN_OR_RETURN(out, KeptFloats(item));
    out.note = "excluded";
  } else if (floats) {
    out = {scheme_.type, AsType(values, count, scheme_.type), "floats", ""};
  } else if ((dense && scheme_.exact) || (head && !scheme_.mix)) {
    SAGE_ASSIGN_OR_RETURN(out, KeptFloats(item));
  } else if (dense && any_quantized_) {
    SAGE_ASSIGN_OR_RETURN(out, KeptFloats(item));
    out.note = "the source keeps these in floats beside quantized layers";
  } else {
    std::vector<GgmlType> kept = {GgufTypeForRows(wanted, slot.K)};
    if (scheme_.exact) kept = {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ8_0};
    std::optional<GgufData> exact;
    for (const GgmlType type : kept) {
      if (exact) break;
      SAGE_ASSIGN_OR_RETURN(exact, KeptCodes(slot, stored, values, type, true));
    }
    if (!exact && !scheme_.exact) {
      SAGE_ASSIGN_OR_RETURN(exact, KeptCodes(slot, stored, values, kept[0], false));
    }
    if (exact) {
      out = *std::move(exact);
    } else if (scheme_.exact || kept[0] == GgmlType::kF32) {
      SAGE_ASSIGN_OR_RETURN(out, KeptFloats(item));
      out.note = scheme_.exact ? "no block type holds the codes and scales exactly"
                               : absl::StrCat("rows of ", slot.K, " are no whole blocks of 32");
    } else {
      SAGE_ASSIGN_OR_RETURN(out, Quantized(item, values, kept[0]));
      if (kept[0] != wanted) {
        out.note = absl::StrCat(std::string(FindGgmlType(wanted)->name),
                                " needs rows of whole blocks of 256, these have ", slot.K, " values");
      }
    }
  }
  const bool rotary = slot.kind == "q_proj" || slot.kind == "k_proj";
  if (interleaved_ && rotary) out.bytes = PermuteRows(out.bytes, slot.N, source_.config().D);
  return out;
}

}  // namespace sage
