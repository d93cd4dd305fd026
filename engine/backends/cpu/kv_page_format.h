// How K and V lie in a page of the CPU: sizes, the rows written into it and read back. Attention reads the same layout
// through KvOffsets.
//
// [kv head]{ K [page_tokens / 16][Dp][16 positions], V [page_tokens][Dp], and for eight-bit formats the scales of K and
// of V [page_tokens] f32, and for int8_per_channel the shifts of K and of V [Dp] int8 }, Dp = D padded to 16. K has its
// positions side by side so that scores need no sum across a vector, and a scale each to fold into them.
//
// Every position has its own scale. What a position is stored as depends on that position (and, for shifts, on the
// first of its page) alone: never on later ones, nor on where a prompt was cut.
#pragma once

#include <cstdint>
#include <string>

#include "engine/api/backend.h"
#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu {

class KvPageFormat {
 public:
  KvPageFormat(const KvLayout& layout, KvFormat format);

  const KvOffsets& offsets() const { return offsets_; }
  size_t page_bytes() const { return static_cast<size_t>(offsets_.page); }
  // k, v: [KH * D]. Slots of a page are written in order: int8_per_channel takes its shifts from slot 0.
  void StoreRow(uint8_t* page, int slot, const float* k, const float* v) const;
  void LoadRow(const uint8_t* page, int slot, float* k, float* v) const;

 private:
  // Of the half of one head: element d of `slot` lies at d * step + base.
  struct Half {
    uint8_t* values;
    float* scale;
    int8_t* shift;
    int64_t base, step;
  };
  Half HalfOf(uint8_t* page, int head, int slot, bool key) const;
  void StoreHalf(const Half& half, int slot, const float* x) const;
  void LoadHalf(const Half& half, int slot, float* x) const;

  KvLayout layout_;
  KvFormat format_;
  int64_t Dp_;
  KvOffsets offsets_;
};

// Empty, or why no kernel serves the layout.
std::string RefuseKvLayout(const KvLayout& layout);

}  // namespace sage::cpu
