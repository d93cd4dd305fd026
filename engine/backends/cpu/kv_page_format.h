// How K and V lie in a page of the CPU: sizes, the rows written into it and read back. Attention reads the same layout
// through KvOffsets.
//
// [kv head]{ K [page_tokens / 16][Dp][16 positions], V [page_tokens][Dp], for eight-bit formats the scales of K and of
// V [page_tokens] f32, for int8_per_channel the shifts of K and of V [Dp] int8, for the float formats the page's first
// key [Dp] f16 }, Dp = D padded to 16. K has its positions side by side so that scores need no sum across a vector, and
// a scale each to fold into them. Where that scale of a float format is negative, the key is code * |scale| plus the
// page's first key.
//
// Every position has its own scale. What a position is stored as depends on that position (and, for shifts and the
// first key, on the first of its page) alone: never on later ones, nor on where a prompt was cut. Calibrated scales of
// a tensor or head are written to each position like those from the data; calibrated channel scales leave codes whose
// scale is one.
//
// Sink positions lie in f16 pages: [kv head][page_tokens / 16][Dp][16 positions] of K in one, [kv
// head][page_tokens][Dp] of V in the other. With calibrated channel scales they hold unrounded codes, x / scale + zero.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/api/backend.h"
#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu {

class KvPageFormat {
 public:
  KvPageFormat(const KvLayout& layout, KvFormat format);

  const KvOffsets& offsets() const { return offsets_; }
  // Bytes between kv heads of a sink page; 0 when the format keeps 16 bits anyway.
  int64_t sink_head() const { return sink_head_; }
  // Factors and offsets [KH * D] that turn codes into values; empty without calibrated channel scales.
  const std::vector<float>& factors(bool key) const { return key ? k_.factors : v_.factors; }
  const std::vector<float>& zeros(bool key) const { return key ? k_.zeros : v_.zeros; }
  size_t page_bytes() const { return static_cast<size_t>(offsets_.page); }
  // k, v: [KH * D]. Slots of a page are written in order: shifts and the first key come from slot 0.
  void StoreRow(uint8_t* page, int slot, const float* k, const float* v) const;
  void LoadRow(const uint8_t* page, int slot, float* k, float* v) const;
  void StoreSink(uint8_t* k_page, uint8_t* v_page, int slot, const float* k, const float* v) const;

 private:
  // Calibrated scales of K or V: by head, or by channel.
  struct Calibrated {
    std::vector<float> heads;           // [KH]
    std::vector<float> factors, zeros;  // [KH * D]
    Calibrated() = default;
    Calibrated(const KvScales& scales, const KvLayout& layout, KvFormat format);
  };
  // Of the half of one head: element d of `slot` lies at d * step + base.
  struct Half {
    uint8_t* values;
    float* scale;
    int8_t* shift;
    uint16_t* reference;  // null where there is none
    int64_t base, step;
  };
  Half HalfOf(uint8_t* page, int head, int slot, bool key) const;
  void StoreHalf(const Half& half, int slot, int head, bool key, const float* x) const;
  void StoreCodes(const Half& half, int slot, const float* row, float scale) const;
  void WriteReference(uint16_t* to, const float* x, bool wanted) const;
  void StoreChannels(const Half& half, int slot, int head, const Calibrated& by, const float* x) const;
  void LoadHalf(const Half& half, int slot, int head, bool key, float* x) const;

  KvLayout layout_;
  KvFormat format_;
  int64_t Dp_;
  KvOffsets offsets_;
  int64_t sink_head_ = 0;
  Calibrated k_, v_;
};

// Empty, or why no kernel serves the layout.
std::string RefuseKvLayout(const KvLayout& layout);
// INVALID_ARGUMENT (BAD_KV_SCALES) unless the layout's calibrated scales are ones that the format takes.
absl::Status CheckKvScales(const KvLayout& layout, KvFormat format);

}  // namespace sage::cpu
