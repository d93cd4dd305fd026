// Linear layers with integer codes: repacks them into panels once.
#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernels/panel_limits.h"
#include "engine/backends/cpu/panel_linear.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/tensor/float_convert.h"

namespace sage::cpu {
namespace {

// Inputs of one activation block: the group, or the largest piece of it up to 256.
int64_t BlockOf(int64_t group) {
  if (group <= kLongestBlock) return group;
  for (int64_t block = kLongestBlock; block >= 64; --block) {
    if (group % block == 0) return block;
  }
  return 128;  // the last block of the row is short
}

// Blocks of activations must not straddle groups: the places that a group takes so that whole blocks fill it. Prime
// numbers above 256 and the like are padded, by less than one place a block.
int64_t PlacesOf(int64_t group) {
  if (group % BlockOf(group) == 0) return group;
  const int64_t pieces = (group + kLongestBlock - 1) / kLongestBlock;
  return pieces * ((group + pieces - 1) / pieces);  // pieces of 129 inputs and more, so BlockOf finds them
}

// Whether f16 holds every value exactly.
bool FitHalves(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) {
    return std::bit_cast<uint32_t>(F16ToFloat(FloatToF16(v))) == std::bit_cast<uint32_t>(v);
  });
}

bool HasNegative(const IntegerWeight& w) {
  return std::any_of(w.codes.begin(), w.codes.end(), [](int8_t code) { return code < 0; });
}

// Whether 8-bit codes lie in 0 .. 15 or -8 .. 7, as those of Q4_K and Q3_K do: half the bytes, the same integer sums.
bool FitNibbles(const IntegerWeight& w) {
  if (w.activations.eight_bits || w.codes.empty()) return false;
  const auto [least, most] = std::minmax_element(w.codes.begin(), w.codes.end());
  return (*least >= 0 && *most <= 15) || (*least >= -8 && *most <= 7);
}

void StoreScale(float value, bool half, int64_t at, WeightMemory* to) {
  if (half) {
    to->as<uint16_t>()[at] = FloatToF16(value);
  } else {
    to->as<float>()[at] = value;
  }
}

}  // namespace

// Gives every group a run of equally many places, the shorter ones padded, so that groups are consecutive and whole
// blocks as the kernels need them. Nothing moves where they are that already.
absl::Status PanelLinear::SortByGroup(const IntegerWeight& w, int64_t groups, int64_t* group_size) {
  const auto group_of = [&](int64_t k) {
    return w.g_idx.empty() ? k / w.group_size : int64_t{w.g_idx[static_cast<size_t>(k)]};
  };
  bool consecutive = true;
  std::vector<int64_t> count(static_cast<size_t>(groups));
  for (int64_t k = 0; k < K_; ++k) {
    const int64_t g = group_of(k);
    if (g < 0 || g >= groups) {
      return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED",
                       absl::StrCat(kernel_, ": g_idx must be in 0 .. ", groups - 1, ", got ", g));
    }
    ++count[static_cast<size_t>(g)];
    consecutive = consecutive && g == k / w.group_size;
  }
  if (consecutive && (groups == 1 || PlacesOf(w.group_size) == w.group_size)) return absl::OkStatus();
  const int64_t places = PlacesOf(*std::max_element(count.begin(), count.end()));
  if (!consecutive && groups * places > 2 * K_ + 64) {
    return MakeError(absl::StatusCode::kInvalidArgument, "GROUPS_TOO_UNEQUAL",
                     absl::StrCat(kernel_, ": groups of g_idx must be about equally long, got ", groups, " groups of ",
                                  K_, " inputs, the longest with ", places));
  }
  form_.order.assign(static_cast<size_t>(groups * places), -1);
  std::fill(count.begin(), count.end(), 0);
  for (int64_t k = 0; k < K_; ++k) {
    const int64_t g = group_of(k);
    form_.order[static_cast<size_t>(g * places + count[static_cast<size_t>(g)]++)] = static_cast<int32_t>(k);
  }
  form_.name = absl::StrCat("int16 ordered ", Sha256Hex({reinterpret_cast<const char*>(form_.order.data()),
                                                         form_.order.size() * sizeof(int32_t)}));
  *group_size = places;
  return absl::OkStatus();
}

absl::Status PanelLinear::Pack(LinearWeight weight, bool nibbles, ThreadPool& threads) {
  const IntegerWeight& w = weight.integer;
  N_ = weight.N;
  K_ = weight.K;
  const int64_t groups = (K_ + w.group_size - 1) / w.group_size;
  int64_t group_size = w.group_size;
  SAGE_RETURN_IF_ERROR(SortByGroup(w, groups, &group_size));
  form_.block = BlockOf(group_size);
  form_.activations = w.activations;
  ChooseLayout(nibbles);
  code_bias_ = nibbles ? (w.codes_signed ? 8 : 0) : layout_ == PanelLayout::kInt8Quads ? 128 : 0;
  const int64_t inputs = form_.order.empty() ? K_ : static_cast<int64_t>(form_.order.size());
  groups_ = groups;
  blocks_ = (inputs + form_.block - 1) / form_.block;
  blocks_per_group_ = groups == 1 ? blocks_ : group_size / form_.block;
  half_ = FitHalves(w.scale) && FitHalves(w.offset);
  SAGE_RETURN_IF_ERROR(Allocate(!w.offset.empty()));
  const int64_t panels = (N_ + 15) / 16;
  threads.ParallelFor(panels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) PackPanel(w, p);
  });
  bias_ = std::move(weight.bias);
  return absl::OkStatus();
}

absl::Status PanelLinear::Allocate(bool offset) {
  const auto panels = static_cast<size_t>((N_ + 15) / 16);
  const auto blocks = static_cast<size_t>(blocks_);
  const size_t factors = panels * static_cast<size_t>(groups_) * 16 * (half_ ? sizeof(uint16_t) : sizeof(float));
  SAGE_ASSIGN_OR_RETURN(codes_, WeightMemory::Allocate(panels * blocks * static_cast<size_t>(BlockBytes())));
  SAGE_ASSIGN_OR_RETURN(scale_, WeightMemory::Allocate(factors));
  if (offset) {
    SAGE_ASSIGN_OR_RETURN(offset_, WeightMemory::Allocate(factors));
  }
  if (form_.bytes && form_.activations.zero != 0) {
    SAGE_ASSIGN_OR_RETURN(shift_, WeightMemory::Allocate(panels * blocks * 16 * sizeof(int32_t)));
  }
  return absl::OkStatus();
}

// Quads for 8-bit activations where the tier has exact products of bytes, else pairs for int16.
void PanelLinear::ChooseLayout(bool nibbles) {
  const bool eight = form_.activations.eight_bits;
  // Products of bytes know one zero point for all rows; int16 codes have theirs taken off already.
  form_.bytes = eight && (nibbles || tier_.int8_quads) && !form_.has_token_zeros();
  if (form_.bytes) {
    layout_ = nibbles ? PanelLayout::kNibbleQuads : PanelLayout::kInt8Quads;
    form_.row_bytes = (form_.block + 7) / 8 * 8;
  } else {
    layout_ = nibbles ? PanelLayout::kNibblePairs : PanelLayout::kInt8Pairs;
    form_.row_bytes = (form_.block + 3) / 4 * 8;
  }
  if (eight) {
    form_.name =
        absl::StrCat(form_.bytes ? "int8 " : "int8 wide ", absl::Hex(std::bit_cast<uint32_t>(form_.activations.scale)),
                     " ", form_.activations.zero, form_.has_token_zeros() ? " by token " : " ", form_.name);
  }
}

// One row of one block, its codes with their bias, into the panel's block at `to`.
void PanelLinear::PackCodes(const int8_t* codes, int64_t r, uint8_t* to) const {
  const int64_t padded = form_.bytes ? form_.row_bytes : form_.row_bytes / 2;
  switch (layout_) {
    case PanelLayout::kInt8Pairs:
      for (int64_t i = 0; i < padded; ++i) to[i / 2 * 32 + r * 2 + i % 2] = static_cast<uint8_t>(codes[i]);
      break;
    case PanelLayout::kInt8Quads:
      for (int64_t i = 0; i < padded; ++i) to[i / 4 * 64 + r * 4 + i % 4] = static_cast<uint8_t>(codes[i] + 128);
      break;
    case PanelLayout::kNibblePairs:
      for (int64_t i = 0; i < padded; ++i) {
        const int code = (codes[i] + code_bias_) & 15;
        to[i / 4 * 32 + r * 2 + i % 2] |= static_cast<uint8_t>(i % 4 < 2 ? code : code << 4);
      }
      break;
    case PanelLayout::kNibbleQuads:
      for (int64_t i = 0; i < padded; ++i) {
        const int code = (codes[i] + code_bias_) & 15;
        to[i / 8 * 64 + r * 4 + i % 4] |= static_cast<uint8_t>(i % 8 < 4 ? code : code << 4);
      }
      break;
  }
}

void PanelLinear::PackPanel(const IntegerWeight& w, int64_t panel) {
  const int64_t rows = std::min<int64_t>(16, N_ - panel * 16);
  const int64_t inputs = form_.order.empty() ? K_ : static_cast<int64_t>(form_.order.size());
  int8_t some[kLongestBlock + 8];
  for (int64_t r = 0; r < 16; ++r) {
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t begin = b * form_.block, size = std::min(form_.block, inputs - begin);
      std::fill(std::begin(some), std::end(some), int8_t{0});
      if (r < rows) {
        const int8_t* from = w.codes.data() + (panel * 16 + r) * K_;
        for (int64_t i = 0; i < size; ++i) {
          const int64_t k = form_.order.empty() ? begin + i : form_.order[static_cast<size_t>(begin + i)];
          if (k >= 0) some[i] = from[k];
        }
      }
      PackCodes(some, r, codes_.as<uint8_t>() + (panel * blocks_ + b) * BlockBytes());
      if (shift_.empty()) continue;
      int32_t sum = 0;
      for (int64_t i = 0; i < size; ++i) sum += some[i] + code_bias_;
      shift_.as<int32_t>()[(panel * blocks_ + b) * 16 + r] = -form_.activations.zero * sum;
    }
    if (r < rows) PackScales(w, panel, r);
  }
}

// Rows past N keep zeros.
void PanelLinear::PackScales(const IntegerWeight& w, int64_t panel, int64_t r) {
  for (int64_t g = 0; g < groups_; ++g) {
    const size_t from = static_cast<size_t>((panel * 16 + r) * groups_ + g);
    const int64_t to = (panel * groups_ + g) * 16 + r;
    StoreScale(w.scale[from], half_, to, &scale_);
    if (!offset_.empty()) StoreScale(w.offset[from], half_, to, &offset_);
  }
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindPanels(LinearWeight weight, bool nibbles, ThreadPool& threads,
                                                        const TierFns& tier, std::string kernel) {
  const IntegerWeight& w = weight.integer;
  const auto refuse = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED", absl::StrCat(kernel, ": ", rule));
  };
  if (weight.N < 1 || weight.K < 1) return refuse("N and K must be positive");
  if (w.group_size <= 0) return refuse("group_size must be positive");
  if (static_cast<int64_t>(w.codes.size()) != weight.N * weight.K) return refuse("codes must be [N, K]");
  if (!w.codes_signed && w.bits == 8) return refuse("codes of eight bits must be signed");
  if (nibbles && w.bits > 4) return refuse(absl::StrCat("codes must have at most 4 bits, got ", w.bits));
  const size_t scales = static_cast<size_t>(weight.N * ((weight.K + w.group_size - 1) / w.group_size));
  if (w.scale.size() != scales || (!w.offset.empty() && w.offset.size() != scales)) {
    return refuse(absl::StrCat("scale and offset must be [N, G], ", scales, " values"));
  }
  if (!w.g_idx.empty() && static_cast<int64_t>(w.g_idx.size()) != weight.K) return refuse("g_idx must be [K]");
  if (!nibbles && w.bits == 8 && FitNibbles(w)) {
    nibbles = true;
    weight.integer.codes_signed = HasNegative(w);
    absl::StrAppend(&kernel, " (codes of 4 bits)");
  }
  auto out = std::make_unique<PanelLinear>(tier, std::move(kernel));
  SAGE_RETURN_IF_ERROR(out->Pack(std::move(weight), nibbles, threads));
  return out;
}

}  // namespace sage::cpu
