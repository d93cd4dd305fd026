// Linear layers of ggml blocks (Q4_0, Q4_1, Q8_0): repacked into panels once, code for code and scale for scale.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/panel_linear.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage::cpu {
namespace {

constexpr int64_t kBlockInputs = 32;
// Source bytes that are repacked before their pages go back to the page cache.
constexpr int64_t kReleaseBytes = 1 << 20;

// Bytes of a block, where its codes begin, what a stored code has too much; 0 bytes for an unknown type.
struct BlockForm {
  int64_t bytes = 0, codes = 0;
  int bias = 0;
  bool nibbles = false;
  bool offset = false;
};
BlockForm FormOf(const std::string& type) {
  if (type == "q4_0") return {18, 2, 8, true, false};
  if (type == "q4_1") return {20, 4, 0, true, true};
  if (type == "q8_0") return {34, 2, 0, false, false};
  return {};
}

// The codes of one row in the pairs of a panel's block. A ggml byte holds inputs i and i + 16.
void PackNibbles(const uint8_t* from, int64_t r, uint8_t* to) {
  for (int i = 0; i < 32; i += 4, to += 32) {
    const uint8_t* q = from + i % 16;
    const int shift = i < 16 ? 0 : 4;
    to[r * 2] = static_cast<uint8_t>((q[0] >> shift & 15) | (q[2] >> shift & 15) << 4);
    to[r * 2 + 1] = static_cast<uint8_t>((q[1] >> shift & 15) | (q[3] >> shift & 15) << 4);
  }
}
void PackBytes(const uint8_t* from, int64_t r, uint8_t* to) {
  for (int i = 0; i < 32; i += 2) std::memcpy(to + i * 16 + r * 2, from + i, 2);
}

}  // namespace

absl::Status PanelLinear::PackBlocks(LinearWeight weight, ThreadPool& threads) {
  const BlockForm form = FormOf(weight.blocks.type);
  N_ = weight.N;
  K_ = weight.K;
  layout_ = form.nibbles ? PanelLayout::kNibblePairs : PanelLayout::kInt8Pairs;
  code_bias_ = form.bias;
  half_ = true;
  form_.block = kBlockInputs;
  form_.row_bytes = kBlockInputs * 2;
  blocks_ = groups_ = K_ / kBlockInputs;
  SAGE_RETURN_IF_ERROR(Allocate(form.offset));
  const int64_t panels = (N_ + 15) / 16, row_bytes = blocks_ * form.bytes;
  const auto pack_row = [&](int64_t n) {
    const uint8_t* from = weight.blocks.data + n * row_bytes;
    const int64_t r = n % 16, first = n / 16 * blocks_;
    for (int64_t b = 0; b < blocks_; ++b, from += form.bytes) {
      uint8_t* to = codes_.as<uint8_t>() + (first + b) * BlockBytes();
      form.nibbles ? PackNibbles(from + form.codes, r, to) : PackBytes(from + form.codes, r, to);
      std::memcpy(scale_.as<uint16_t>() + (first + b) * 16 + r, from, 2);
      if (form.offset) std::memcpy(offset_.as<uint16_t>() + (first + b) * 16 + r, from + 2, 2);
    }
  };
  const int64_t some = std::max<int64_t>(1, kReleaseBytes / (16 * row_bytes));  // panels
  threads.ParallelFor((panels + some - 1) / some, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n_begin = i * some * 16, n_end = std::min(N_, n_begin + some * 16);
      for (int64_t n = n_begin; n < n_end; ++n) pack_row(n);
      const auto bytes = static_cast<size_t>((n_end - n_begin) * row_bytes);
      if (weight.blocks.in_map) ReleaseMappedPages(weight.blocks.data + n_begin * row_bytes, bytes);
    }
  });
  bias_ = std::move(weight.bias);
  return absl::OkStatus();
}

std::string RefuseBlocks(const LinearKernelQuery& query) {
  if (std::string sizes = RefuseSizes(query); !sizes.empty()) return sizes;
  return query.K % kBlockInputs == 0 ? "" : absl::StrCat("K must be a multiple of 32, got ", query.K);
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindBlocks(LinearWeight weight, ThreadPool& threads, const TierFns& tier,
                                                        std::string kernel) {
  const std::string& type = weight.blocks.type;
  const int64_t block_bytes = FormOf(type).bytes;
  if (block_bytes == 0 || weight.N < 1 || weight.K < 1 || weight.K % kBlockInputs != 0 ||
      weight.blocks.bytes != static_cast<size_t>(weight.K / kBlockInputs * block_bytes * weight.N)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED",
                     absl::StrCat(kernel, ": blocks of type '", type, "' must fill [", weight.N, ", ", weight.K,
                                  "], got ", weight.blocks.bytes, " bytes"));
  }
  auto out = std::make_unique<PanelLinear>(tier, std::move(kernel));
  SAGE_RETURN_IF_ERROR(out->PackBlocks(std::move(weight), threads));
  return out;
}

}  // namespace sage::cpu
