// Sizes of a page, and its rows in every format: conversions round half to even and saturate; a position that is not
// finite gets NaN for its scale, so nothing that reads it can look finite.
#include "engine/backends/cpu/kv_page_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "engine/tensor/float_convert.h"

namespace sage::cpu {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();
// Scale of a position whose values are all zero (or as good as): far below anything that matters, far above subnormals.
constexpr float kSmallestScale = 0x1p-100f;

int64_t ElementBytes(KvFormat format) { return format == KvFormat::kF32 ? 4 : format == KvFormat::kBF16 ? 2 : 1; }
bool IsFloatCode(KvFormat format) { return format == KvFormat::kE4M3 || format == KvFormat::kE5M2; }
bool HasScales(KvFormat format) { return format != KvFormat::kF32 && format != KvFormat::kBF16; }

float LargestCode(KvFormat format) {
  return format == KvFormat::kE4M3 ? kMaxE4M3 : format == KvFormat::kE5M2 ? kMaxE5M2 : 127.0f;
}

uint16_t SaturateBF16(float value) {
  const uint16_t bits = FloatToBF16(value);
  const bool overflowed = (bits & 0x7fffu) == 0x7f80u && std::fabs(value) <= kLargest;
  return overflowed ? static_cast<uint16_t>(bits - 1) : bits;
}

uint16_t SaturateF16(float value) {
  return FloatToF16(std::fabs(value) <= kLargest ? std::clamp(value, -65504.0f, 65504.0f) : value);
}

uint8_t EncodeInt8(float value) {
  return static_cast<uint8_t>(static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, std::nearbyint(value)))));
}

float DecodeCode(KvFormat format, uint8_t code) {
  if (format == KvFormat::kE4M3) return DecodeE4M3(code);
  if (format == KvFormat::kE5M2) return DecodeE5M2(code);
  return static_cast<float>(static_cast<int8_t>(code));
}

// Channels that stand out by their mean magnitude in the first position of a page keep a coarser step there: 2^shift.
// Up to 5 times the mean (4 sigma of normal values) nothing is shifted and the format equals int8_per_token.
void ChooseShifts(const float* x, int64_t D, int8_t* shift) {
  float sum = 0;
  for (int64_t d = 0; d < D; ++d) sum += std::fabs(x[d]);
  const float unit = 2.5f * sum / static_cast<float>(D);
  for (int64_t d = 0; d < D; ++d) {
    const float ratio = std::fabs(x[d]) / unit;
    shift[d] = static_cast<int8_t>(ratio >= 2.0f && ratio <= kLargest ? std::min(std::ilogb(ratio), 15) : 0);
  }
}

// Rounded to `bits` of mantissa, half to even: what an 8-bit float keeps of a value in its normal range.
float RoundMantissa(float value, int bits) {
  const uint32_t drop = static_cast<uint32_t>(23 - bits), raw = std::bit_cast<uint32_t>(value);
  const uint32_t half = (1u << (drop - 1)) - 1 + ((raw >> drop) & 1u);
  return std::bit_cast<float>((raw + half) & ~((1u << drop) - 1));
}

// visit(d, d % 8) for every channel, in order: written so that eight sums run beside one another.
template <class Visit>
void ForEachChannel(int64_t D, const Visit& visit) {
  int64_t d = 0;
  for (; d + 8 <= D; d += 8) {
    for (int lane = 0; lane < 8; ++lane) visit(d + lane, lane);
  }
  for (; d < D; ++d) visit(d, static_cast<int>(d % 8));
}
float SumOfEight(const float (&s)[8]) { return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])); }

// A float grid repeats with every doubling, so where the largest values of a row fall on it is a matter of its scale:
// of eight scales in [scale, 2 scale) the one with the least squared error. Values at the ends of the range saturate
// nowhere. Sums have a fixed order.
float FinestScale(const float* row, int64_t D, float scale, int bits) {
  if (!(scale > kSmallestScale && scale < 1e30f)) return scale;
  float least = kLargest, best = scale;
  for (int candidate = 0; candidate < 8; ++candidate) {
    constexpr float kSteps[] = {1.0f,       1.0905077f, 1.1892071f, 1.2968396f,
                                1.4142135f, 1.5422108f, 1.6817929f, 1.8340081f};
    const float tried = scale * kSteps[candidate], inverse = 1.0f / tried;
    float error[8] = {};
    ForEachChannel(D, [&](int64_t d, int lane) {
      const float value = row[d] * inverse, lost = value - RoundMantissa(value, bits);
      error[lane] += lost * lost;
    });
    const float sum = SumOfEight(error);
    if (sum * tried * tried < least) {
      least = sum * tried * tried;
      best = tried;
    }
  }
  return best;
}

// F16ToFloat of what is neither infinite nor NaN, without a branch.
float FiniteF16(uint16_t bits) {
  const float size = std::bit_cast<float>((bits & 0x7fffu) << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(size) | (bits & 0x8000u) << 16);
}

// Keys of neighbouring positions have much in common, most of all in the channels that are large and that queries look
// at: what a key differs by from the first of its page is kept where that is the smaller of the two, because what a
// float code loses is a part of what it holds. Sums have a fixed order. `row` is x, or the difference and true.
bool TakeDifference(const uint16_t* reference, int64_t D, const float* x, float* row) {
  float with[8] = {}, without[8] = {};
  ForEachChannel(D, [&](int64_t d, int lane) {
    row[d] = x[d] - FiniteF16(reference[d]);
    with[lane] += row[d] * row[d];
    without[lane] += x[d] * x[d];
  });
  if (SumOfEight(with) < SumOfEight(without)) return true;
  std::copy_n(x, D, row);
  return false;
}

}  // namespace

std::string RefuseKvLayout(const KvLayout& layout) {
  if (layout.KH < 1 || layout.KH > 4096) return absl::StrCat("needs KH in [1, 4096], got KH=", layout.KH);
  if (layout.H < 0 || layout.H % layout.KH != 0) {
    return absl::StrCat("needs KH to divide H, got H=", layout.H, ", KH=", layout.KH);
  }
  if (layout.D < 1 || layout.D > 1024) return absl::StrCat("needs D in [1, 1024], got D=", layout.D);
  if (layout.page_tokens < 16 || layout.page_tokens % 16 != 0 || kPartKeys % layout.page_tokens != 0) {
    return absl::StrCat("needs page_tokens of 16, 32, 64, 128 or 256, got page_tokens=", layout.page_tokens);
  }
  if (layout.sink_pages < 0 || layout.sink_pages > 1 << 16) {
    return absl::StrCat("needs sink_pages in [0, 65536], got sink_pages=", layout.sink_pages);
  }
  return "";
}

absl::Status CheckKvScales(const KvLayout& layout, KvFormat format) {
  if (layout.scales == nullptr) return absl::OkStatus();
  const auto bad = [](const std::string& rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_KV_SCALES", absl::StrCat("kv scales: ", rule));
  };
  if (!HasScales(format)) return bad("a cache of floats has none");
  const size_t heads = static_cast<size_t>(layout.KH), channels = heads * static_cast<size_t>(layout.D);
  for (const KvScales* scales : {&layout.scales->k, &layout.scales->v}) {
    const size_t count = scales->scale.size();
    const bool by_channel = format == KvFormat::kInt8Channel && count == channels;
    if (count != 1 && count != heads && !by_channel) {
      return bad(absl::StrCat("must be 1, ", heads, " (kv heads)",
                              format == KvFormat::kInt8Channel ? absl::StrCat(" or ", channels, " (channels)") : "",
                              ", got ", count));
    }
    if (!scales->zero.empty() && (!by_channel || scales->zero.size() != channels)) {
      return bad(absl::StrCat("zero points must come with a scale for each channel, got ", scales->zero.size(),
                              " beside ", count, " scales"));
    }
    for (const float scale : scales->scale) {
      if (!(scale > 0 && scale <= kLargest)) return bad(absl::StrCat("must be positive and finite, got ", scale));
    }
    for (const float zero : scales->zero) {
      if (!(zero >= -128 && zero <= 127 && zero == std::nearbyint(zero))) {
        return bad(absl::StrCat("zero points must be integers in [-128, 127], got ", zero));
      }
    }
  }
  return absl::OkStatus();
}

// An int8_per_channel cache given a scale for all or for each head spreads it over the channels.
KvPageFormat::Calibrated::Calibrated(const KvScales& scales, const KvLayout& layout, KvFormat format) {
  const size_t count = scales.scale.size(), KH = static_cast<size_t>(layout.KH), D = static_cast<size_t>(layout.D);
  std::vector<float>& to = format == KvFormat::kInt8Channel ? factors : heads;
  to.resize(format == KvFormat::kInt8Channel ? KH * D : KH);
  for (size_t i = 0; i < to.size(); ++i) to[i] = scales.scale[i * count / to.size()];
  if (format != KvFormat::kInt8Channel) return;
  zeros = scales.zero;
  zeros.resize(KH * D);
}

KvPageFormat::KvPageFormat(const KvLayout& layout, KvFormat format)
    : layout_(layout), format_(format), Dp_((layout.D + 15) / 16 * 16) {
  if (HasScales(format) && layout.sink_pages > 0) sink_head_ = layout.page_tokens * Dp_ * int64_t{sizeof(uint16_t)};
  if (layout.scales != nullptr) {
    k_ = Calibrated(layout.scales->k, layout, format);
    v_ = Calibrated(layout.scales->v, layout, format);
  }
  const int64_t half = layout.page_tokens * Dp_ * ElementBytes(format);
  const int64_t scales = HasScales(format) ? layout.page_tokens * int64_t{sizeof(float)} : 0;
  const int64_t shifts = format == KvFormat::kInt8Channel ? Dp_ : 0;
  const int64_t reference = IsFloatCode(format) ? Dp_ * int64_t{sizeof(uint16_t)} : 0;
  offsets_.v = half;
  offsets_.k_scale = 2 * half;
  offsets_.v_scale = offsets_.k_scale + scales;
  offsets_.k_shift = offsets_.v_scale + scales;
  offsets_.v_shift = offsets_.k_shift + shifts;
  offsets_.k_reference = offsets_.v_shift + shifts;
  offsets_.head = offsets_.k_reference + reference;
  offsets_.page = offsets_.head * layout.KH;
}

KvPageFormat::Half KvPageFormat::HalfOf(uint8_t* page, int head, int slot, bool key) const {
  uint8_t* const begin = page + head * offsets_.head;
  Half half;
  half.values = begin + (key ? 0 : offsets_.v);
  half.scale = reinterpret_cast<float*>(begin + (key ? offsets_.k_scale : offsets_.v_scale));
  half.shift = reinterpret_cast<int8_t*>(begin + (key ? offsets_.k_shift : offsets_.v_shift));
  half.reference = key && IsFloatCode(format_) ? reinterpret_cast<uint16_t*>(begin + offsets_.k_reference) : nullptr;
  half.base = key ? slot / 16 * 16 * Dp_ + slot % 16 : slot * Dp_;
  half.step = key ? 16 : 1;
  return half;
}

// `row` / scale as codes, all zero when the scale is NaN.
void KvPageFormat::StoreCodes(const Half& half, int slot, const float* row, float scale) const {
  uint8_t* const to = half.values + half.base;
  for (int64_t d = 0; d < layout_.D; ++d) {
    const float value = std::isnan(scale) ? 0.0f : row[d] / scale;
    to[d * half.step] = format_ == KvFormat::kE4M3   ? EncodeE4M3(value)
                        : format_ == KvFormat::kE5M2 ? EncodeE5M2(value)
                                                     : EncodeInt8(value);
  }
}

// Codes by calibrated channel: the position's scale only says whether it is finite.
void KvPageFormat::StoreChannels(const Half& half, int slot, int head, const Calibrated& by, const float* x) const {
  const int64_t D = layout_.D;
  if (slot == 0) std::fill_n(half.shift, D, int8_t{0});
  bool finite = true;
  uint8_t* const to = half.values + half.base;
  for (int64_t d = 0; d < D; ++d) {
    const size_t at = static_cast<size_t>(head * D + d);
    finite = finite && std::fabs(x[d]) <= kLargest;
    const float code = std::nearbyint(x[d] / by.factors[at] + by.zeros[at]);
    to[d * half.step] = static_cast<uint8_t>(static_cast<int8_t>(finite ? std::clamp(code, -128.0f, 127.0f) : 0.0f));
  }
  half.scale[slot] = finite ? 1.0f : std::numeric_limits<float>::quiet_NaN();
}

void KvPageFormat::StoreHalf(const Half& half, int slot, int head, bool key, const float* x) const {
  const int64_t D = layout_.D;
  const Calibrated& calibrated = key ? k_ : v_;
  if (!calibrated.factors.empty()) return StoreChannels(half, slot, head, calibrated, x);
  if (format_ == KvFormat::kF32) {
    float* const to = reinterpret_cast<float*>(half.values) + half.base;
    for (int64_t d = 0; d < D; ++d) to[d * half.step] = x[d];
    return;
  }
  if (format_ == KvFormat::kBF16) {
    uint16_t* const to = reinterpret_cast<uint16_t*>(half.values) + half.base;
    for (int64_t d = 0; d < D; ++d) to[d * half.step] = SaturateBF16(x[d]);
    return;
  }
  const bool shifted = format_ == KvFormat::kInt8Channel;
  if (shifted && slot == 0) ChooseShifts(x, D, half.shift);
  if (half.reference != nullptr && slot == 0) WriteReference(half.reference, x, calibrated.heads.empty());
  float row[1024];  // RefuseKvLayout bounds D
  bool finite = true;
  for (int64_t d = 0; d < D; ++d) {
    row[d] = shifted ? std::ldexp(x[d], -half.shift[d]) : x[d];
    finite = finite && std::fabs(x[d]) <= kLargest;
  }
  const bool chosen = calibrated.heads.empty() && finite && IsFloatCode(format_);
  const bool differs = chosen && key && TakeDifference(half.reference, D, x, row);
  float most = 0;
  for (int64_t d = 0; d < D; ++d) most = std::max(most, std::fabs(row[d]));
  // A hair below the largest float, so that the largest code times the scale is one too.
  float scale = std::max(std::min(most, 0.99999f * kLargest) / LargestCode(format_), kSmallestScale);
  if (!calibrated.heads.empty()) {
    scale = calibrated.heads[static_cast<size_t>(head)];
  } else if (chosen) {
    scale = FinestScale(row, D, scale, format_ == KvFormat::kE4M3 ? 3 : 2);
  }
  if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
  StoreCodes(half, slot, row, scale);
  half.scale[slot] = differs ? -scale : scale;
}

// The first key of the page in f16; zeros when calibrated scales leave no choice.
void KvPageFormat::WriteReference(uint16_t* to, const float* x, bool wanted) const {
  std::fill_n(to, Dp_, uint16_t{0});
  for (int64_t d = 0; wanted && d < layout_.D; ++d)
    to[d] = std::fabs(x[d]) <= kLargest ? SaturateF16(x[d]) : uint16_t{0};
}

void KvPageFormat::LoadHalf(const Half& half, int slot, int head, bool key, float* x) const {
  const Calibrated& calibrated = key ? k_ : v_;
  for (int64_t d = 0; d < layout_.D; ++d) {
    const int64_t i = half.base + d * half.step;
    const size_t channel = static_cast<size_t>(head * layout_.D + d);
    if (format_ == KvFormat::kF32) {
      x[d] = reinterpret_cast<const float*>(half.values)[i];
    } else if (format_ == KvFormat::kBF16) {
      x[d] = BF16ToFloat(reinterpret_cast<const uint16_t*>(half.values)[i]);
    } else if (!calibrated.factors.empty()) {
      const float code = static_cast<float>(static_cast<int8_t>(half.values[i])) - calibrated.zeros[channel];
      x[d] = code * calibrated.factors[channel] * half.scale[slot];
    } else {
      const float value = DecodeCode(format_, half.values[i]) * std::fabs(half.scale[slot]);
      const bool differs = half.reference != nullptr && half.scale[slot] < 0;
      x[d] = format_ == KvFormat::kInt8Channel ? std::ldexp(value, half.shift[d])
             : differs                         ? value + FiniteF16(half.reference[d])
                                               : value;
    }
  }
}

void KvPageFormat::StoreRow(uint8_t* page, int slot, const float* k, const float* v) const {
  for (int h = 0; h < layout_.KH; ++h) {
    StoreHalf(HalfOf(page, h, slot, true), slot, h, true, k + int64_t{h} * layout_.D);
    StoreHalf(HalfOf(page, h, slot, false), slot, h, false, v + int64_t{h} * layout_.D);
  }
}

void KvPageFormat::LoadRow(const uint8_t* page, int slot, float* k, float* v) const {
  uint8_t* const bytes = const_cast<uint8_t*>(page);  // LoadHalf only reads
  for (int h = 0; h < layout_.KH; ++h) {
    LoadHalf(HalfOf(bytes, h, slot, true), slot, h, true, k + int64_t{h} * layout_.D);
    LoadHalf(HalfOf(bytes, h, slot, false), slot, h, false, v + int64_t{h} * layout_.D);
  }
}

void KvPageFormat::StoreSink(uint8_t* k_page, uint8_t* v_page, int slot, const float* k, const float* v) const {
  for (int h = 0; h < layout_.KH; ++h) {
    uint16_t* const k_to = reinterpret_cast<uint16_t*>(k_page + h * sink_head_) + slot / 16 * 16 * Dp_ + slot % 16;
    uint16_t* const v_to = reinterpret_cast<uint16_t*>(v_page + h * sink_head_) + slot * Dp_;
    for (int64_t d = 0; d < layout_.D; ++d) {
      const size_t at = static_cast<size_t>(h * layout_.D + d);
      k_to[d * 16] = SaturateF16(k_.factors.empty() ? k[at] : k[at] / k_.factors[at] + k_.zeros[at]);
      v_to[d] = SaturateF16(v_.factors.empty() ? v[at] : v[at] / v_.factors[at] + v_.zeros[at]);
    }
  }
}

}  // namespace sage::cpu
