// Uploads plans, launches the kernels of a format, and reads stored positions back for tests and reports.
#include "engine/backends/cuda/kv_pages.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/backends/cuda/kernels/attention.h"
#include "engine/backends/cuda/kv_codes.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

struct KvRecord {
  const char* name;
  const char* strategy;
  KvStore store;
  KvCode code;
};
constexpr KvRecord kRecords[] = {
    {"attention_bf16_sm80", "bf16", KvStore::kBf16, kFloatCode},
    {"attention_f32_sm80", "f32", KvStore::kF32, kFloatCode},
    {"attention_fp8_e4m3_sm80", "fp8_e4m3", KvStore::kFp8, kE4m3Code},
    {"attention_fp8_e5m2_sm80", "fp8_e5m2", KvStore::kFp8, kE5m2Code},
    {"attention_int8_per_token_sm80", "int8_per_token", KvStore::kInt8, kInt8Code},
};

std::string Refuse(const KvLayout& layout) {
  if (layout.KH < 1 || layout.KH > 4096) return absl::StrCat("needs KH in [1, 4096], got KH=", layout.KH);
  if (layout.H < 0 || layout.H % layout.KH != 0) {
    return absl::StrCat("needs KH to divide H, got H=", layout.H, ", KH=", layout.KH);
  }
  if (layout.D < 1 || layout.D > 128) return absl::StrCat("needs D in [1, 128], got D=", layout.D);
  if (layout.page_tokens < 16 || layout.page_tokens > 256 || layout.page_tokens % 16 != 0) {
    return absl::StrCat("needs page_tokens to be a multiple of 16 up to 256, got page_tokens=", layout.page_tokens);
  }
  if (layout.sink_pages < 0 || layout.sink_pages > 1 << 16) {
    return absl::StrCat("needs sink_pages in [0, 65536], got sink_pages=", layout.sink_pages);
  }
  return "";
}

// Calibrated scales are one for all or one a head.
absl::Status CheckScales(const KvLayout& layout, const KvRecord& record) {
  if (layout.scales == nullptr) return absl::OkStatus();
  for (const KvScales* scales : {&layout.scales->k, &layout.scales->v}) {
    const size_t count = scales->scale.size();
    if (record.code.largest == 0 || (count != 1 && count != static_cast<size_t>(layout.KH)) || !scales->zero.empty()) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_KV_SCALES",
                       absl::StrCat("kv scales: ", record.name, " takes 1 or ", layout.KH,
                                    " (kv heads) of an 8-bit format without zero points, got ", count));
    }
    for (const float scale : scales->scale) {
      if (!(scale > 0 && std::isfinite(scale))) {
        return MakeError(absl::StatusCode::kInvalidArgument, "BAD_KV_SCALES",
                         absl::StrCat("kv scales: must be positive and finite, got ", scale));
      }
    }
  }
  return absl::OkStatus();
}

class KvPages final : public KvKernel {
 public:
  KvPages(const KvLayout& layout, const KvRecord& record, CudaDevice& device)
      : layout_(layout),
        record_(record),
        device_(device),
        Dp_((layout.D + 15) / 16 * 16),
        offsets_(MakeKvOffsets(layout.KH, Dp_, layout.page_tokens, StoreBytes(record.store), record.code.largest > 0,
                               record.store == KvStore::kFp8)) {}

  absl::Status Start() {
    if (layout_.scales == nullptr) return absl::OkStatus();
    const auto place = [&](const KvScales& scales, DeviceBuffer* to) -> absl::Status {
      std::vector<float> heads(static_cast<size_t>(layout_.KH));
      for (size_t h = 0; h < heads.size(); ++h) heads[h] = scales.scale[h * scales.scale.size() / heads.size()];
      SAGE_ASSIGN_OR_RETURN(*to, device_.Place(heads.data(), heads.size() * sizeof(float)));
      return absl::OkStatus();
    };
    SAGE_RETURN_IF_ERROR(place(layout_.scales->k, &k_scales_));
    return place(layout_.scales->v, &v_scales_);
  }

  size_t page_bytes() const override { return static_cast<size_t>(offsets_.page); }
  std::string kernel() const override { return record_.name; }

  void Store(StepContext& ctx, uint8_t* arena, const float* k, int64_t k_stride, const float* v, int64_t v_stride,
             const StepSequences& sequences) const override {
    const PlacedPlan* const placed = Placed(sequences);
    if (placed == nullptr || placed->plan.rows == 0) return;
    const int32_t* const words = placed->words.as<int32_t>();
    KvStoreArgs a;
    a.slices = reinterpret_cast<const PlacedSlice*>(words + placed->plan.slices);
    a.row_slice = words + placed->plan.row_slice;
    a.pages = words + placed->plan.pages;
    a.arena = arena;
    a.offsets = offsets_;
    a.code = record_.code;
    a.store = record_.store;
    a.k = k;
    a.v = v;
    a.k_scales = k_scales_.as<float>();
    a.v_scales = v_scales_.as<float>();
    a.k_stride = k_stride;
    a.v_stride = v_stride;
    a.M = placed->plan.rows;
    a.D = layout_.D;
    a.Dp = Dp_;
    a.page_tokens = layout_.page_tokens;
    a.sink_pages = layout_.sink_pages;
    LaunchKvStore(a, layout_.KH, device_.stream());
    device_.Check("kv_store");
  }

  void Attend(StepContext& ctx, const uint8_t* arena, const AttentionArgs& args) const override {
    const PlacedPlan* const placed = Placed(args.sequences);
    if (placed == nullptr || placed->plan.item_count == 0) return;
    const int32_t* const words = placed->words.as<int32_t>();
    AttentionKernelArgs a;
    a.slices = reinterpret_cast<const PlacedSlice*>(words + placed->plan.slices);
    a.items = reinterpret_cast<const AttentionItem*>(words + placed->plan.items);
    a.pages = words + placed->plan.pages;
    a.arena = arena;
    a.offsets = offsets_;
    a.code = record_.code;
    a.q = args.q;
    a.out = args.out;
    a.states = placed->states.as<float>();
    a.q_stride = args.q_stride;
    a.out_stride = args.out_stride;
    a.group = args.H / layout_.KH;
    a.KH = layout_.KH;
    a.D = layout_.D;
    a.Dp = Dp_;
    a.page_tokens = layout_.page_tokens;
    a.sink_pages = layout_.sink_pages;
    a.window = static_cast<int32_t>(std::min<int64_t>(args.window, INT32_MAX));
    a.score_factor = args.scale * 1.4426950408889634f;
    LaunchAttention(record_.store, a, placed->plan.splits, placed->plan.item_count, placed->plan.combines,
                    device_.stream());
    device_.Check("attention");
  }

  void Load(const uint8_t* arena, int32_t page, int slot, float* k, float* v) const override {
    std::vector<uint8_t> bytes(page_bytes());
    // An error stays with the device; the values are then zero.
    device_.Note(cudaMemcpyAsync(bytes.data(), arena + page * offsets_.page, bytes.size(), cudaMemcpyDeviceToHost,
                                 device_.stream()),
                 "kv load");
    device_.Wait();
    for (int h = 0; h < layout_.KH; ++h) {
      for (int d = 0; d < layout_.D; ++d) {
        k[h * layout_.D + d] = Value(bytes.data(), h, slot, d, true);
        v[h * layout_.D + d] = Value(bytes.data(), h, slot, d, false);
      }
    }
  }

 private:
  const PlacedPlan* Placed(const StepSequences& sequences) const {
    if (sequences.placed != nullptr) return static_cast<const PlacedPlan*>(sequences.placed);
    KvLayout layout = layout_;
    const absl::Status status = own_.Place(sequences.slices, layout, device_);
    if (!status.ok()) device_.Note(cudaErrorMemoryAllocation, "sequences of a step");
    return status.ok() ? &own_ : nullptr;
  }

  float Value(const uint8_t* page, int head, int slot, int d, bool key) const {
    const uint8_t* const base = page + head * offsets_.head;
    const uint8_t* const values = base + (key ? 0 : offsets_.v);
    const int64_t at = int64_t{slot} * Dp_ + d;
    if (record_.store == KvStore::kF32) return reinterpret_cast<const float*>(values)[at];
    if (record_.store == KvStore::kBf16) return Bf16Value(reinterpret_cast<const uint16_t*>(values)[at]);
    const float scale = reinterpret_cast<const float*>(base + (key ? offsets_.k_scale : offsets_.v_scale))[slot];
    const float value = DecodeCode(values[at], record_.store, record_.code) * std::fabs(scale);
    return scale < 0 ? value + F16Value(reinterpret_cast<const uint16_t*>(base + offsets_.k_reference)[d]) : value;
  }

  KvLayout layout_;
  const KvRecord& record_;
  CudaDevice& device_;
  int32_t Dp_;
  KvOffsets offsets_;
  DeviceBuffer k_scales_, v_scales_;
  mutable PlacedPlan own_;  // of calls that were given no placed sequences
};

absl::Status Grow(size_t bytes, CudaDevice& device, DeviceBuffer* buffer) {
  if (buffer->bytes() >= bytes) return absl::OkStatus();
  size_t size = 4096;
  while (size < bytes) size *= 2;
  *buffer = DeviceBuffer();
  SAGE_ASSIGN_OR_RETURN(*buffer, device.Allocate(size));
  return absl::OkStatus();
}

}  // namespace

absl::Status PlacedPlan::Place(absl::Span<const SequenceSlice> sequences, const KvLayout& layout, CudaDevice& device) {
  plan = PlanAttention(sequences, layout);
  // Few sizes of the grid, so that few recordings serve every length.
  plan.splits = PowerAtLeast(plan.splits);
  plan.combines = plan.splits > 1;
  const size_t row = static_cast<size_t>(layout.D <= 64 ? 64 : 128) + 2;
  SAGE_RETURN_IF_ERROR(Grow(plan.words.size() * sizeof(int32_t), device, &words));
  SAGE_RETURN_IF_ERROR(Grow(static_cast<size_t>(plan.state_rows) * row * sizeof(float), device, &states));
  device.Upload(words.as<void>(), plan.words.data(), plan.words.size() * sizeof(int32_t));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<KvKernel>> BindKvPages(std::string_view kv_strategy, const KvLayout& layout,
                                                      CudaDevice& device, std::vector<KernelRefusal>* refused) {
  for (const KvRecord& record : kRecords) {
    std::string reason = record.strategy == kv_strategy
                             ? Refuse(layout)
                             : absl::StrCat("serves ", record.strategy, ", not ", std::string(kv_strategy));
    if (!reason.empty()) {
      refused->push_back({record.name, std::move(reason)});
      continue;
    }
    SAGE_RETURN_IF_ERROR(CheckScales(layout, record));
    auto pages = std::make_unique<KvPages>(layout, record, device);
    SAGE_RETURN_IF_ERROR(pages->Start());
    return std::unique_ptr<KvKernel>(std::move(pages));
  }
  return std::unique_ptr<KvKernel>();
}

std::vector<std::string> KvKernelNames() {
  std::vector<std::string> names;
  for (const KvRecord& record : kRecords) names.emplace_back(record.name);
  return names;
}

}  // namespace sage::cuda
