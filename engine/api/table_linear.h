// Weights as 4-bit codes of a table with one maximum a block, stored as bitsandbytes stores them (reference/
// quantization.md 1.7): shared by nf4_w4a16 and fp4_w4a16.
//
//   weight                    U8 [ceil(N K / 2), 1]  row-major matrix, even elements in the high nibble
//   weight.absmax             F32 [blocks], or U8 [blocks] with double quantization; a block is 64 weights of the
//                             row-major matrix and may cross rows
//   weight.quant_map          F32 [16]
//   weight.nested_absmax      F32 [ceil(blocks / 256)]    double quantization only
//   weight.nested_quant_map   F32 [256]                   double quantization only
//   weight.quant_state.bitsandbytes__<type>  U8, JSON text: see bnb_state.h
// w = quant_map[code] * absmax, one f32 product; absmax = nested_quant_map[code] * nested_absmax + nested_offset.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "engine/api/bnb_state.h"
#include "engine/api/stored_tensors.h"
#include "engine/quant/nf4.h"

namespace sage::linear_strategies {

// `Codes` has kType ("nf4"), kTable and Encode(value in -1 .. 1).
template <const char* kName, class Codes>
struct TableLinear {
  static constexpr int64_t kBlock = 64, kNestedBlock = 256;

  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, N, K));
    if (spec.group_size != -1 && spec.group_size != kBlock) {
      return Refuse(kName, "GROUP_SIZE_NOT_SUPPORTED",
                    absl::StrCat("group_size must be 64 (or -1, which means it), got ", spec.group_size),
                    {{"group_size", absl::StrCat(spec.group_size)}, {"allowed", "64"}});
    }
    if (!spec.symmetric || spec.act_order || spec.clip_ratio != 0 || spec.block_rows != 1 ||
        spec.activation_group_size != -1) {
      return Refuse(
          kName, "FIELD_NOT_SUPPORTED",
          absl::StrCat("symmetric=true, act_order=false, clip_ratio=0, block_rows=1 and "
                       "activation_group_size=-1 are the only choices, got symmetric=",
                       spec.symmetric, ", act_order=", spec.act_order, ", clip_ratio=", spec.clip_ratio,
                       ", block_rows=", spec.block_rows, ", activation_group_size=", spec.activation_group_size));
    }
    return CheckWholeScales(kName, spec.scale_dtype);
  }

  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    SAGE_RETURN_IF_ERROR(CheckWeight(kName, weight));
    const int64_t N = weight.dim(0), K = weight.dim(1);
    SAGE_RETURN_IF_ERROR(Check(spec, N, K));
    if (!IsEmpty(plan))
      return Refuse(kName, "PLAN_NOT_SUPPORTED", "maxima and codes follow from the weights, got a plan");
    const int64_t blocks = (N * K + kBlock - 1) / kBlock;
    StoredLinear stored;
    stored.spec = spec;
    stored.spec.strategy = kName;
    stored.spec.group_size = kBlock;
    stored.spec.scale_dtype = DType::kF32;  // the format has no other
    stored.N = N;
    stored.K = K;
    std::vector<float> values(static_cast<size_t>(N * K));
    SAGE_RETURN_IF_ERROR(ForEachRow(kName, weight, threads, [&](int64_t n, const float* row) {
      std::memcpy(values.data() + n * K, row, static_cast<size_t>(K) * sizeof(float));
      return absl::OkStatus();
    }));
    std::vector<float> absmax(static_cast<size_t>(blocks));
    SAGE_ASSIGN_OR_RETURN(Tensor * packed, AddTensor(&stored, "weight", DType::kU8, {(N * K + 1) / 2, 1}));
    threads.ParallelFor(blocks, 64, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t count = std::min(kBlock, N * K - b * kBlock);
        absmax[static_cast<size_t>(b)] =
            EncodeBlock(values.data() + b * kBlock, count, packed->as<uint8_t>() + b * kBlock / 2);
      }
    });
    SAGE_RETURN_IF_ERROR(StoreScales(absmax, &stored));
    return stored;
  }

  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    SAGE_RETURN_IF_ERROR(CheckRows(stored, n_begin, n_end));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    for (int64_t i = n_begin * stored.K; i < n_end * stored.K; ++i) {
      const uint8_t byte = parts.codes.template as<uint8_t>()[i / 2];
      *out++ = parts.table[i % 2 == 0 ? byte >> 4 : byte & 15] * parts.Absmax(i / parts.block);
    }
    return absl::OkStatus();
  }

  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored,
                                                           std::shared_ptr<const void> keep_alive,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    SAGE_ASSIGN_OR_RETURN(LinearWeight weight, BeginWeight(stored, std::move(keep_alive)));
    SAGE_ASSIGN_OR_RETURN(const Parts parts, Open(stored));
    FloatCodeWeight& w = weight.floats;
    w.kind = FloatCodeWeight::Kind::kTable16;
    w.codes = parts.codes.template as<uint8_t>();
    w.bytes = parts.codes.bytes;
    w.high_nibble_first = true;
    w.table.assign(parts.table.begin(), parts.table.end());
    w.flat_block = parts.block;
    w.scale.resize(static_cast<size_t>(parts.blocks));
    for (int64_t b = 0; b < parts.blocks; ++b) w.scale[static_cast<size_t>(b)] = parts.Absmax(b);
    return backend.BindLinear(QueryOf(kName, stored, parts.block, true, priority), std::move(weight), threads);
  }

 private:
  // The stored tensors after every check.
  struct Parts {
    int64_t block = 0, blocks = 0, nested_block = 0;
    float offset = 0;
    TensorView codes, absmax, nested_absmax;
    std::array<float, 16> table;
    std::array<float, 256> nested_table;

    float Absmax(int64_t b) const {
      if (nested_block == 0) return LoadFloat(absmax, b);
      return DoubleDequantize(nested_table[absmax.as<uint8_t>()[b]], LoadFloat(nested_absmax, b / nested_block),
                              offset);
    }
  };

  static std::string StateName() { return absl::StrCat("weight.quant_state.bitsandbytes__", Codes::kType); }

  static absl::StatusOr<BnbState> ReadState(const StoredLinear& stored) {
    const auto it = stored.tensors.find(StateName());
    if (it == stored.tensors.end()) {
      return Refuse(kName, "MISSING_TENSOR", absl::StrCat("tensor '", StateName(), "' must be present"));
    }
    if (it->second.dtype != DType::kU8 || it->second.data == nullptr) {
      return Refuse(kName, "BAD_TENSOR", absl::StrCat("tensor '", StateName(), "' must be U8"));
    }
    auto state = ParseBnbState({it->second.as<char>(), it->second.bytes});
    if (!state.ok()) return Annotate(state.status(), kName);
    if (state->quant_type != Codes::kType || state->N != stored.N || state->K != stored.K) {
      return Refuse(kName, "BAD_QUANT_STATE",
                    absl::StrCat("quant_state must describe ", Codes::kType, " [", stored.N, ", ", stored.K, "], got ",
                                 state->quant_type, " [", state->N, ", ", state->K, "]"));
    }
    return state;
  }

  template <size_t kCount>
  static absl::Status ReadTable(const StoredLinear& stored, const std::string& name, std::array<float, kCount>* out) {
    SAGE_ASSIGN_OR_RETURN(const TensorView view,
                          RequireTensor(stored, name, {DType::kF32}, {static_cast<int64_t>(kCount)}));
    LoadFloats(view, 0, static_cast<int64_t>(kCount), out->data());
    for (const float v : *out) {
      if (!std::isfinite(v)) return Refuse(kName, "BAD_TENSOR", absl::StrCat("'", name, "' must be finite, got ", v));
    }
    return absl::OkStatus();
  }

  static absl::StatusOr<Parts> Open(const StoredLinear& stored) {
    SAGE_RETURN_IF_ERROR(CheckSize(kName, stored.N, stored.K));
    SAGE_ASSIGN_OR_RETURN(const BnbState state, ReadState(stored));
    const int64_t count = stored.N * stored.K;
    Parts parts;
    parts.block = state.blocksize;
    parts.blocks = (count + parts.block - 1) / parts.block;
    parts.nested_block = state.nested_blocksize;
    parts.offset = state.nested_offset;
    SAGE_ASSIGN_OR_RETURN(parts.codes, RequireTensor(stored, "weight", {DType::kU8}, {(count + 1) / 2, 1}));
    SAGE_RETURN_IF_ERROR(ReadTable(stored, "weight.quant_map", &parts.table));
    const DType absmax = parts.nested_block > 0 ? DType::kU8 : DType::kF32;
    SAGE_ASSIGN_OR_RETURN(parts.absmax, RequireTensor(stored, "weight.absmax", {absmax}, {parts.blocks}));
    if (parts.nested_block > 0) {
      const int64_t nested = (parts.blocks + parts.nested_block - 1) / parts.nested_block;
      SAGE_ASSIGN_OR_RETURN(parts.nested_absmax,
                            RequireTensor(stored, "weight.nested_absmax", {DType::kF32}, {nested}));
      SAGE_RETURN_IF_ERROR(ReadTable(stored, "weight.nested_quant_map", &parts.nested_table));
    }
    return parts;
  }

  // Codes of up to 64 weights; returns their largest magnitude.
  static float EncodeBlock(const float* values, int64_t count, uint8_t* out) {
    float absmax = 0;
    for (int64_t i = 0; i < count; ++i) absmax = std::max(absmax, std::fabs(values[i]));
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t code = Codes::Encode(absmax > 0 ? values[i] / absmax : 0.0f);
      out[i / 2] |= static_cast<uint8_t>(i % 2 == 0 ? code << 4 : code);
    }
    return absmax;
  }

  static absl::Status StoreFloats(StoredLinear* stored, const std::string& name, const float* values, size_t count) {
    SAGE_ASSIGN_OR_RETURN(Tensor * to, AddTensor(stored, name, DType::kF32, {static_cast<int64_t>(count)}));
    std::memcpy(to->as<float>(), values, count * sizeof(float));
    return absl::OkStatus();
  }

  static absl::Status StoreScales(const std::vector<float>& absmax, StoredLinear* stored) {
    BnbState state;
    state.quant_type = Codes::kType;
    state.N = stored->N;
    state.K = stored->K;
    SAGE_RETURN_IF_ERROR(StoreFloats(stored, "weight.quant_map", Codes::kTable.data(), Codes::kTable.size()));
    if (!stored->spec.double_quant) {
      SAGE_RETURN_IF_ERROR(StoreFloats(stored, "weight.absmax", absmax.data(), absmax.size()));
    } else {
      const DoubleQuantized nested = DoubleQuantize(absmax, kNestedBlock);
      state.nested_blocksize = kNestedBlock;
      state.nested_offset = nested.offset;
      SAGE_ASSIGN_OR_RETURN(
          Tensor * codes, AddTensor(stored, "weight.absmax", DType::kU8, {static_cast<int64_t>(nested.codes.size())}));
      std::memcpy(codes->as<uint8_t>(), nested.codes.data(), nested.codes.size());
      SAGE_RETURN_IF_ERROR(
          StoreFloats(stored, "weight.nested_absmax", nested.nested_absmax.data(), nested.nested_absmax.size()));
      SAGE_RETURN_IF_ERROR(StoreFloats(stored, "weight.nested_quant_map", DynamicMap().data(), DynamicMap().size()));
    }
    const std::string text = FormatBnbState(state);
    SAGE_ASSIGN_OR_RETURN(Tensor * bytes,
                          AddTensor(stored, StateName(), DType::kU8, {static_cast<int64_t>(text.size())}));
    std::memcpy(bytes->as<uint8_t>(), text.data(), text.size());
    return absl::OkStatus();
  }
};

}  // namespace sage::linear_strategies
