// Chooses the packed form of a weight: f16 scale records where they hold every scale exactly, f32 otherwise.
#include "engine/backends/cuda/host/linear_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "engine/tensor/float_convert.h"

namespace sage::cuda {
namespace {

absl::Status Refuse(const std::string& kernel, std::string_view reason, const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(kernel, ": ", rule));
}

// Scale and second number of output n for the chunk or group that begins at `place`.
struct Record {
  float scale = 0, second = 0;
};
using RecordAt = std::function<Record(int64_t n, int64_t place)>;

// The plan of a weight before its codes are looked at.
LinearPlan PlanOf(const LinearWeight& weight) {
  LinearPlan plan;
  plan.N = weight.N;
  plan.K = weight.K;
  plan.bias = weight.bias;
  return plan;
}

bool FitsF16(float value) { return F16ToFloat(FloatToF16(value)) == value; }

// w[n, k] = scale code + offset where offset = -(scale z) with a whole z: the zero point, else NaN.
float ZeroOf(float scale, float offset) {
  if (offset == 0.0f) return 0.0f;
  if (scale == 0.0f) return std::numeric_limits<float>::quiet_NaN();
  const float zero = std::nearbyint(-offset / scale);
  return std::fabs(zero) <= 2048.0f && -(scale * zero) == offset ? zero : std::numeric_limits<float>::quiet_NaN();
}

void SetBlocks(int64_t places, LinearPlan* plan) {
  plan->row_blocks = static_cast<int>((plan->N + kRowBlock - 1) / kRowBlock);
  plan->k_blocks = static_cast<int>((places + kBlockInputs - 1) / kBlockInputs);
  plan->source.N = plan->N;
  plan->source.K = plan->K;
  plan->source.places = places;
}

// Chunks and groups for scales of `group` consecutive places each.
void SetGroups(int64_t group, int64_t places, LinearPlan* plan) {
  if (group >= places) {  // one scale a row: a group that no k block leaves
    plan->chunks = 1;
    plan->blocks_per_group = std::max(2, plan->k_blocks);
    plan->groups = 1;
    return;
  }
  const int64_t chunk = std::gcd(group, int64_t{kBlockInputs});
  plan->chunks = static_cast<int>(kBlockInputs / chunk);
  plan->blocks_per_group = plan->chunks == 1 ? static_cast<int>(group / kBlockInputs) : 1;
  plan->groups = plan->chunks > 1 ? plan->k_blocks * plan->chunks
                                  : (plan->k_blocks + plan->blocks_per_group - 1) / plan->blocks_per_group;
}

// The power of two that brings the largest number to 2^14 .. 2^15, where f16 holds most of the smaller ones.
int SharedExponent(const std::vector<float>& values) {
  float most = 0;
  for (const float v : values) most = std::max(most, std::fabs(v));
  return most == 0.0f ? 0 : std::ilogb(most) - 14;
}

void StoreRecords(const std::vector<float>& scales, const std::vector<float>& seconds, float unit, LinearPlan* plan) {
  const size_t count = scales.size(), per = seconds.empty() ? 1 : 2;
  plan->records.resize(count * per * (plan->wide ? 4 : 2));
  for (size_t i = 0; i < count * per; ++i) {
    const bool second = per == 2 && i % 2 == 1;
    const float value = (second ? seconds : scales)[i / per];
    const float stored = plan->wide || (second && plan->zero_is_code) ? value : value * unit;
    if (plan->wide) {
      std::memcpy(plan->records.data() + i * 4, &stored, 4);
    } else {
      const uint16_t half = FloatToF16(stored);
      std::memcpy(plan->records.data() + i * 2, &half, 2);
    }
  }
}

// Fills the records from `at`, narrow when nothing is lost.
absl::Status MakeRecords(int64_t places, bool offsets, const RecordAt& at, const std::string& kernel,
                         LinearPlan* plan) {
  const int64_t step = plan->groups == 1  ? places
                       : plan->chunks > 1 ? plan->chunk_inputs()
                                          : int64_t{plan->blocks_per_group} * kBlockInputs;
  const size_t count = static_cast<size_t>(plan->row_blocks) * static_cast<size_t>(plan->groups) * kRowBlock;
  std::vector<float> scales(count), seconds(offsets ? count : 0), zeros(offsets ? count : 0);
  bool whole = true;
  for (int64_t n = 0; n < plan->N; ++n) {
    for (int64_t g = 0; g < plan->groups && g * step < places; ++g) {
      const size_t to = static_cast<size_t>((n / kRowBlock * plan->groups + g) * kRowBlock + n % kRowBlock);
      const Record record = at(n, g * step);
      if (!std::isfinite(record.scale) || !std::isfinite(record.second)) {
        return Refuse(kernel, "SCALE_OUT_OF_RANGE",
                      absl::StrCat("scales and offsets must be finite, row ", n, ", group ", g, " has ", record.scale));
      }
      scales[to] = record.scale;
      if (!offsets) continue;
      seconds[to] = record.second;
      zeros[to] = ZeroOf(record.scale, record.second);
      whole = whole && !std::isnan(zeros[to]);
    }
  }
  plan->zero_is_code = offsets && whole;
  if (plan->zero_is_code) seconds = std::move(zeros);
  // The kernel's sums are in units of what decoding gives, and so must be what is added to them.
  for (float& second : seconds) second /= DecodeFactor(plan->code);
  std::vector<float> all = scales;
  if (offsets && !whole) all.insert(all.end(), seconds.begin(), seconds.end());
  const int exponent = SharedExponent(all);
  const float unit = std::ldexp(1.0f, -exponent);
  plan->wide = !std::isfinite(unit) || unit == 0.0f ||
               !std::all_of(all.begin(), all.end(), [&](float v) { return v * unit / unit == v && FitsF16(v * unit); });
  if (!plan->wide) plan->factor *= std::ldexp(1.0f, exponent);
  StoreRecords(scales, seconds, unit, plan);
  return absl::OkStatus();
}

// Gives every group of g_idx a run of equally many places, a multiple of 16, the shorter ones padded.
absl::Status SortByGroup(const IntegerWeight& w, int64_t K, int64_t groups, const std::string& kernel,
                         int64_t* group_size, LinearPlan* plan) {
  std::vector<int64_t> count(static_cast<size_t>(groups));
  bool consecutive = true;
  for (int64_t k = 0; k < K; ++k) {
    const int32_t g = w.g_idx[static_cast<size_t>(k)];
    if (g < 0 || g >= groups) {
      return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", absl::StrCat("g_idx must be in 0 .. ", groups - 1, ", got ", g));
    }
    ++count[static_cast<size_t>(g)];
    consecutive = consecutive && g == k / w.group_size;
  }
  if (consecutive) return absl::OkStatus();
  const int64_t most = *std::max_element(count.begin(), count.end());
  const int64_t places = (most + 15) / 16 * 16;
  if (groups * places > 2 * K + 64) {
    return Refuse(kernel, "GROUPS_TOO_UNEQUAL",
                  absl::StrCat("groups of g_idx must be about equally long, got ", groups, " groups of ", K,
                               " inputs, the longest with ", most));
  }
  plan->order.assign(static_cast<size_t>(groups * places), -1);
  std::fill(count.begin(), count.end(), 0);
  for (int64_t k = 0; k < K; ++k) {
    const int32_t g = w.g_idx[static_cast<size_t>(k)];
    plan->order[static_cast<size_t>(g * places + count[static_cast<size_t>(g)]++)] = static_cast<int32_t>(k);
  }
  *group_size = places;
  return absl::OkStatus();
}

absl::Status CheckInteger(const LinearWeight& weight, const std::string& kernel) {
  const IntegerWeight& w = weight.integer;
  const auto refuse = [&](const std::string& rule) { return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", rule); };
  if (w.group_size <= 0) return refuse("group_size must be positive");
  if (w.bits < 2 || w.bits > 8) return refuse(absl::StrCat("codes must have 2 to 8 bits, got ", w.bits));
  if (static_cast<int64_t>(w.codes.size()) != weight.N * weight.K) return refuse("codes must be [N, K]");
  const size_t scales = static_cast<size_t>(weight.N * ((weight.K + w.group_size - 1) / w.group_size));
  if (w.scale.size() != scales || (!w.offset.empty() && w.offset.size() != scales)) {
    return refuse(absl::StrCat("scale and offset must be [N, G], ", scales, " values"));
  }
  if (!w.g_idx.empty() && static_cast<int64_t>(w.g_idx.size()) != weight.K) return refuse("g_idx must be [K]");
  if (w.activations.eight_bits && !w.activations.symmetric && w.activations.scale == 0) {
    return refuse("dynamic 8-bit activations must be symmetric");
  }
  if (w.activations.eight_bits && !w.codes_signed) return refuse("codes must be signed for 8-bit activations");
  return absl::OkStatus();
}

// A static zero point of the activations: what it adds to every output leaves with the bias.
void SubtractZeroPoint(const LinearWeight& weight, int64_t groups, LinearPlan* plan) {
  const IntegerWeight& w = weight.integer;
  if (!w.activations.eight_bits || w.activations.zero == 0) return;
  plan->bias.resize(static_cast<size_t>(weight.N), 0.0f);
  for (int64_t n = 0; n < weight.N; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < weight.K; ++k) {
      const int64_t g = w.g_idx.empty() ? k / w.group_size : w.g_idx[static_cast<size_t>(k)];
      const size_t at = static_cast<size_t>(n * groups + g);
      sum += static_cast<double>(w.scale[at]) * w.codes[static_cast<size_t>(n * weight.K + k)];
      if (!w.offset.empty()) sum += w.offset[at];
    }
    float& bias = plan->bias[static_cast<size_t>(n)];
    bias = static_cast<float>(bias - static_cast<double>(w.activations.scale) * w.activations.zero * sum);
  }
}

absl::StatusOr<LinearPlan> PlanInteger(const LinearWeight& weight, const std::string& kernel) {
  SAGE_RETURN_IF_ERROR(CheckInteger(weight, kernel));
  const IntegerWeight& w = weight.integer;
  LinearPlan plan = PlanOf(weight);
  const bool eight = w.activations.eight_bits, nibbles = w.bits <= 4;
  plan.code = eight ? (nibbles ? Code::kInt4A8 : Code::kInt8A8) : (nibbles ? Code::kInt4 : Code::kInt8);
  plan.fold = w.offset.empty() ? Fold::kScale : Fold::kOffset;
  const int64_t groups = (weight.K + w.group_size - 1) / w.group_size;
  int64_t group = w.group_size;
  if (!w.g_idx.empty()) SAGE_RETURN_IF_ERROR(SortByGroup(w, weight.K, groups, kernel, &group, &plan));
  const int64_t places = plan.order.empty() ? weight.K : static_cast<int64_t>(plan.order.size());
  const std::string refusal = RefuseGroups(places, group >= places ? -1 : group, eight);
  if (!refusal.empty()) return Refuse(kernel, "GROUP_SIZE_NOT_SUPPORTED", refusal);
  SetBlocks(places, &plan);
  SetGroups(group, places, &plan);
  plan.factor = DecodeFactor(plan.code);
  const uint32_t bias = !w.codes_signed || eight ? 0 : nibbles ? 8 : 128;
  plan.source.add = bias;
  const uint32_t low = FloatToF16(1024.0f + static_cast<float>(bias));
  const uint32_t high = FloatToF16(-64.0f - static_cast<float>(bias));
  plan.constants = {.low = low | low << 16, .high = high | high << 16};
  plan.source.format = CodeFormat::kBytes;
  plan.source.data = reinterpret_cast<const uint8_t*>(w.codes.data());
  plan.source_bytes = w.codes.size();
  SAGE_RETURN_IF_ERROR(MakeRecords(
      places, !w.offset.empty(),
      [&](int64_t n, int64_t place) {
        const size_t at = static_cast<size_t>(n * groups + place / group);
        return Record{w.scale[at], w.offset.empty() ? 0.0f : w.offset[at]};
      },
      kernel, &plan));
  SubtractZeroPoint(weight, groups, &plan);
  return plan;
}

absl::StatusOr<LinearPlan> PlanBlocks(const LinearWeight& weight, const std::string& kernel) {
  LinearPlan plan = PlanOf(weight);
  const std::string& type = weight.blocks.type;
  const bool q8 = type == "q8_0", q41 = type == "q4_1";
  plan.source.format = q8 ? CodeFormat::kQ8_0 : q41 ? CodeFormat::kQ4_1 : CodeFormat::kQ4_0;
  const int block_bytes = GgmlBlockBytes(plan.source.format);
  if ((!q8 && !q41 && type != "q4_0") || weight.K % 32 != 0 || weight.blocks.data == nullptr ||
      weight.blocks.bytes != static_cast<size_t>(weight.N * weight.K / 32 * block_bytes)) {
    return Refuse(kernel, "WEIGHT_NOT_SUPPORTED",
                  absl::StrCat("blocks of type '", type, "' must fill [", weight.N, ", ", weight.K, "], got ",
                               weight.blocks.bytes, " bytes"));
  }
  plan.code = q8 ? Code::kInt8 : Code::kInt4;
  plan.fold = q41 ? Fold::kOffset : Fold::kScale;
  plan.source.data = weight.blocks.data;
  plan.source_bytes = weight.blocks.bytes;
  plan.source.add = q8 ? 128 : 0;  // int8 to biased bytes; nibbles lie in the file with their bias
  const float bias = q8 ? 128.0f : q41 ? 0.0f : 8.0f;
  const uint32_t low = FloatToF16(1024.0f + bias), high = FloatToF16(-64.0f - bias);
  plan.constants = {.low = low | low << 16, .high = high | high << 16};
  SetBlocks(weight.K, &plan);
  SetGroups(32, weight.K, &plan);
  SAGE_RETURN_IF_ERROR(MakeRecords(
      weight.K, q41,
      [&](int64_t n, int64_t place) {
        const uint8_t* block = weight.blocks.data + (n * weight.K + place) / 32 * block_bytes;
        uint16_t halves[2];
        std::memcpy(halves, block, q41 ? 4 : 2);
        return Record{F16ToFloat(halves[0]), q41 ? F16ToFloat(halves[1]) : 0.0f};
      },
      kernel, &plan));
  return plan;
}

absl::Status CheckFloats(const LinearWeight& weight, const std::string& kernel) {
  const FloatCodeWeight& w = weight.floats;
  const auto refuse = [&](const std::string& rule) { return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", rule); };
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const bool nibbles = w.kind == FloatCodeWeight::Kind::kTable16;
  const int64_t count = weight.N * weight.K;
  if (w.codes == nullptr || static_cast<int64_t>(w.bytes) != (nibbles ? ceil(count, 2) : count)) {
    return refuse(absl::StrCat("codes must fill [", weight.N, ", ", weight.K, "], got ", w.bytes, " bytes"));
  }
  if (nibbles && w.table.size() != 16) return refuse("the code table must have 16 entries");
  if (w.flat_block < 0 || (w.flat_block == 0 && (w.block_rows < 1 || w.block_columns < 1))) {
    return refuse("scale blocks must be positive");
  }
  const int64_t scales =
      w.flat_block > 0 ? ceil(count, w.flat_block) : ceil(weight.N, w.block_rows) * ceil(weight.K, w.block_columns);
  if (static_cast<int64_t>(w.scale.size()) != scales) {
    return refuse(absl::StrCat("there must be ", scales, " scales, got ", w.scale.size()));
  }
  for (int64_t i = 0; !nibbles && i < count; ++i) {
    if (!(w.kind == FloatCodeWeight::Kind::kE4M3 ? IsFiniteE4M3(w.codes[i]) : IsFiniteE5M2(w.codes[i]))) {
      return Refuse(kernel, "NON_FINITE_WEIGHT", "weights must be finite, the codes hold a NaN or an infinity");
    }
  }
  for (const float entry : w.table) {
    if (!(std::fabs(entry) <= 65504.0f)) return refuse("the code table must be finite and within f16");
  }
  return absl::OkStatus();
}

absl::StatusOr<LinearPlan> PlanFloats(const LinearWeight& weight, const std::string& kernel) {
  SAGE_RETURN_IF_ERROR(CheckFloats(weight, kernel));
  const FloatCodeWeight& w = weight.floats;
  LinearPlan plan = PlanOf(weight);
  const bool rounded = w.activations.kind != FloatActivations::Kind::kNone;
  if (rounded && w.kind != FloatCodeWeight::Kind::kE4M3) {
    return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", "8-bit float activations need e4m3 weights");
  }
  plan.code = rounded                                  ? Code::kE4M3A8
              : w.kind == FloatCodeWeight::Kind::kE4M3 ? Code::kE4M3
              : w.kind == FloatCodeWeight::Kind::kE5M2 ? Code::kE5M2
                                                       : Code::kTable16;
  plan.fold = rounded && w.activations.kind == FloatActivations::Kind::kDynamic && w.activations.group_size > 0
                  ? Fold::kTokenScale
                  : Fold::kScale;
  plan.factor = DecodeFactor(plan.code);
  plan.source.format = w.kind != FloatCodeWeight::Kind::kTable16 ? CodeFormat::kBytes
                       : w.high_nibble_first                     ? CodeFormat::kNibblesHighFirst
                                                                 : CodeFormat::kNibblesLowFirst;
  plan.source.data = w.codes;
  plan.source_bytes = w.bytes;
  for (const float entry : w.table) plan.table.push_back(FloatToF16(entry));
  // Blocks of the flat matrix that cross rows begin at multiples of the common divisor of K and the block.
  int64_t group = w.flat_block > 0 ? std::gcd(weight.K, w.flat_block) : w.block_columns;
  std::string refusal = RefuseGroups(weight.K, group >= weight.K ? -1 : group, rounded);
  if (refusal.empty() && plan.fold == Fold::kTokenScale) {
    const int64_t own = w.activations.group_size;
    refusal = RefuseGroups(weight.K, own >= weight.K ? -1 : own, true);
    if (own < weight.K) group = group >= weight.K ? own : std::gcd(group, own);
  }
  if (!refusal.empty()) return Refuse(kernel, "GROUP_SIZE_NOT_SUPPORTED", refusal);
  SetBlocks(weight.K, &plan);
  SetGroups(group, weight.K, &plan);
  const int64_t columns = w.flat_block > 0 ? 0 : (weight.K + w.block_columns - 1) / w.block_columns;
  SAGE_RETURN_IF_ERROR(MakeRecords(
      weight.K, false,
      [&](int64_t n, int64_t place) {
        const int64_t at = w.flat_block > 0 ? (n * weight.K + place) / w.flat_block
                                            : n / w.block_rows * columns + place / w.block_columns;
        return Record{w.scale[static_cast<size_t>(at)], 0.0f};
      },
      kernel, &plan));
  return plan;
}

}  // namespace

PackedLayer MakeLayer(const LinearPlan& plan, int multiprocessors) {
  PackedLayer layer;
  layer.N = static_cast<int>(plan.N);
  layer.row_blocks = plan.row_blocks;
  layer.k_blocks = plan.k_blocks;
  layer.slices = ChooseSlices(plan.row_blocks, plan.k_blocks, multiprocessors);
  layer.groups = plan.groups;
  layer.chunks = plan.chunks;
  layer.blocks_per_group = plan.blocks_per_group;
  layer.group_magic = plan.blocks_per_group > 1 ? DivideMagic(static_cast<uint32_t>(plan.blocks_per_group)) : 0;
  layer.wide = plan.wide;
  layer.zero_is_code = plan.zero_is_code;
  layer.factor = plan.factor;
  layer.constants = plan.constants;
  return layer;
}

std::string RefuseSize(int64_t N, int64_t K) {
  if (N <= kMostOutputs && K <= kMostInputs) return "";
  return absl::StrCat("N must be at most ", kMostOutputs, " and K at most ", kMostInputs, ", got ", N, " and ", K);
}

std::string RefuseGroups(int64_t K, int64_t group_size, bool byte_activations) {
  const int64_t step = byte_activations ? 32 : 16;
  if (group_size == 0 || group_size < -1) return absl::StrCat("group_size must be positive or -1, got ", group_size);
  if (group_size == -1 || group_size % step == 0 || (K > 0 && group_size >= K)) return "";
  return absl::StrCat("group_size must be a multiple of ", step, " or -1, got ", group_size,
                      byte_activations ? "; 16-bit activations take multiples of 16" : "");
}

absl::StatusOr<LinearPlan> PlanLinear(const LinearWeight& weight, const std::string& kernel) {
  if (weight.N < 1 || weight.K < 1) {
    return Refuse(kernel, "WEIGHT_NOT_SUPPORTED",
                  absl::StrCat("N and K must be positive, got ", weight.N, " and ", weight.K));
  }
  const std::string size = RefuseSize(weight.N, weight.K);
  if (!size.empty()) return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", size);
  if (!weight.bias.empty() && static_cast<int64_t>(weight.bias.size()) != weight.N) {
    return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", absl::StrCat("bias must be [N], got ", weight.bias.size()));
  }
  if (!weight.blocks.type.empty()) return PlanBlocks(weight, kernel);
  if (weight.floats.codes != nullptr) return PlanFloats(weight, kernel);
  return PlanInteger(weight, kernel);
}

}  // namespace sage::cuda
