// Repacks weights once and splits each product over threads by outputs.
#include "engine/backends/cpu/bound_linears.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/backends/cpu/kernels/panel_limits.h"
#include "engine/backends/cpu/split_outputs.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage::cpu {
namespace {

// What a layer makes of an activation row before the product.
struct RowForm {
  int64_t block = 0;
  int64_t row_bytes = 0;  // of a block
  bool bytes = false;     // int8 codes instead of int16
  // Act-order layers: the input that each place takes, -1 for padding. Empty: inputs as they come.
  std::vector<int32_t> order;
  // Equal for equal orders, so that q, k and v with one order share a form and different orders never do.
  std::string name = "int16";
  IntegerActivations activations;
};

void QuantizeOne(const float* row, int64_t inputs, const RowForm& form, const TierFns& tier, const RowCodes& to) {
  if (!form.activations.eight_bits) return tier.quantize_row(row, inputs, form.block, to);
  const auto quantize = form.bytes ? tier.quantize_row8 : tier.quantize_row8_wide;
  quantize(row, inputs, form.block, form.activations.scale, form.activations.zero, to);
}

// Integer form of a value, shared by every layer that reads the value with the same block size and order.
QuantizedRows QuantizeActivation(StepContext& ctx, const StepValue& x, const RowForm& form, const TierFns& tier) {
  const int64_t block = form.block, row_bytes = form.row_bytes;
  const int64_t inputs = form.order.empty() ? x.K : static_cast<int64_t>(form.order.size());
  const int64_t blocks = (inputs + block - 1) / block;
  const size_t code_bytes = (static_cast<size_t>(x.M * blocks * row_bytes) + 63) / 64 * 64;
  const size_t scale_bytes = static_cast<size_t>(x.M * blocks) * sizeof(float);
  // The id carries the block size: two layers with different groups need different forms of one value.
  uint8_t* memory =
      ctx.activations->Get(x.id * 1024 + block, form.name, code_bytes + 2 * scale_bytes, [&](uint8_t* to) {
        auto* scale = reinterpret_cast<float*>(to + code_bytes);
        auto* sum = reinterpret_cast<int32_t*>(to + code_bytes + scale_bytes);
        const auto rows = [&](int64_t begin, int64_t end) {
          std::vector<float> ordered(form.order.size());
          for (int64_t m = begin; m < end; ++m) {
            const float* row = x.data + m * x.stride;
            for (size_t i = 0; i < ordered.size(); ++i) ordered[i] = form.order[i] < 0 ? 0.0f : row[form.order[i]];
            if (!ordered.empty()) row = ordered.data();
            QuantizeOne(row, inputs, form, tier, {to + m * row_bytes, scale + m, sum + m, x.M, row_bytes});
          }
        };
        if (x.M * x.K < kInlineWork) {
          rows(0, x.M);
        } else {
          ctx.threads->ParallelFor(x.M, 8, rows);
        }
      });
  return {memory,
          reinterpret_cast<float*>(memory + code_bytes),
          reinterpret_cast<int32_t*>(memory + code_bytes + scale_bytes),
          x.M,
          blocks,
          row_bytes};
}

const float* BiasOf(const std::vector<float>& bias) { return bias.empty() ? nullptr : bias.data(); }

class DenseLinear final : public BoundLinear {
 public:
  using Fn = decltype(TierFns::dense_f32);
  DenseLinear(LinearWeight weight, Fn fn, std::string kernel)
      : weight_(std::move(weight)), fn_(fn), kernel_(std::move(kernel)) {}

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    const int64_t K = weight_.K;
    SplitOutputs(ctx, (weight_.N + 7) / 8, x.M * weight_.N * K, [=, this](int64_t begin, int64_t end) {
      fn_(x.data, x.stride, x.M, K, weight_.dense.values.data, begin * 8, std::min(end * 8, weight_.N),
          BiasOf(weight_.bias), out, out_stride);
    });
  }
  int64_t N() const override { return weight_.N; }
  int64_t K() const override { return weight_.K; }
  size_t weight_bytes() const override { return weight_.dense.values.bytes; }
  std::string kernel() const override { return kernel_; }

 private:
  LinearWeight weight_;
  Fn fn_;
  std::string kernel_;
};

class BlockLinear final : public BoundLinear {
 public:
  using Fn = decltype(TierFns::blocks_q4_0);
  BlockLinear(LinearWeight weight, Fn fn, int64_t row_bytes, const TierFns& tier, std::string kernel)
      : weight_(std::move(weight)), fn_(fn), row_bytes_(row_bytes), tier_(tier), kernel_(std::move(kernel)) {
    form_.block = 32;
    form_.row_bytes = 64;
  }

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    const QuantizedRows rows = QuantizeActivation(ctx, x, form_, tier_);
    SplitOutputs(ctx, weight_.N, x.M * weight_.N * weight_.K, [=, this](int64_t begin, int64_t end) {
      fn_(rows, {weight_.blocks.data, row_bytes_}, begin, end, BiasOf(weight_.bias), out, out_stride);
    });
  }
  int64_t N() const override { return weight_.N; }
  int64_t K() const override { return weight_.K; }
  size_t weight_bytes() const override { return weight_.blocks.bytes; }
  std::string kernel() const override { return kernel_; }

 private:
  LinearWeight weight_;
  Fn fn_;
  int64_t row_bytes_;
  RowForm form_;
  const TierFns& tier_;
  std::string kernel_;
};

class PanelLinear final : public BoundLinear {
 public:
  PanelLinear(const TierFns& tier, std::string kernel) : tier_(tier), kernel_(std::move(kernel)) {}

  absl::Status Pack(LinearWeight weight, bool nibbles, ThreadPool& threads);

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    const QuantizedRows rows = QuantizeActivation(ctx, x, form_, tier_);
    const PanelWeights w{layout_,
                         codes_.as<uint8_t>(),
                         scale_.as<float>(),
                         offset_.empty() ? nullptr : offset_.as<float>(),
                         shift_.empty() ? nullptr : shift_.as<int32_t>(),
                         blocks_,
                         groups_,
                         blocks_per_group_,
                         CodeBias()};
    const int64_t panels = (N_ + 15) / 16;
    // Pieces of whole pairs: two panels share each broadcast activation.
    SplitOutputs(ctx, (panels + 1) / 2, x.M * N_ * K_, [=, this](int64_t begin, int64_t end) {
      tier_.panels(rows, w, begin * 2, std::min(end * 2, panels), N_, BiasOf(bias_), out, out_stride);
    });
  }
  int64_t N() const override { return N_; }
  int64_t K() const override { return K_; }
  size_t weight_bytes() const override { return codes_.bytes() + scale_.bytes() + offset_.bytes() + shift_.bytes(); }
  std::string kernel() const override { return kernel_; }

 private:
  absl::Status SortByGroup(const IntegerWeight& w, int64_t groups, int64_t* group_size);
  void ChooseLayout(bool nibbles);
  void PackPanel(const IntegerWeight& w, int64_t panel);
  void PackCodes(const int8_t* codes, int64_t r, uint8_t* to) const;
  bool nibbles() const { return layout_ == PanelLayout::kNibblePairs || layout_ == PanelLayout::kNibbleQuads; }
  // Of one block of a panel.
  int64_t BlockBytes() const {
    return form_.row_bytes / 8 *
           (layout_ == PanelLayout::kNibblePairs ? 32
            : layout_ == PanelLayout::kInt8Quads ? 128
                                                 : 64);
  }
  // What the stored codes have too much.
  int CodeBias() const { return nibbles() ? 8 : layout_ == PanelLayout::kInt8Quads ? 128 : 0; }

  const TierFns& tier_;
  std::string kernel_;
  RowForm form_;
  PanelLayout layout_ = PanelLayout::kInt8Pairs;
  int64_t N_ = 0, K_ = 0, blocks_ = 0, groups_ = 1, blocks_per_group_ = 1;
  Tensor codes_, scale_, offset_, shift_;
  std::vector<float> bias_;
};

// Inputs of one activation block: the group, or the largest piece of it up to 256.
int64_t BlockOf(int64_t group) {
  if (group <= 256) return group;
  for (int64_t block = 256; block >= 64; --block) {
    if (group % block == 0) return block;
  }
  return 128;  // the last block of the row is short
}

std::string GroupRule(int64_t group) {
  return absl::StrCat("group_size must be at most 256 or have a divisor in 64..256, got ", group);
}

// Blocks of activations must not straddle groups.
bool BlocksFitGroups(int64_t K, int64_t group) { return group >= K || group % BlockOf(group) == 0; }

// Gives every group a run of equally many places, the shorter ones padded, so that groups are consecutive as the
// kernels need them.
absl::Status PanelLinear::SortByGroup(const IntegerWeight& w, int64_t groups, int64_t* group_size) {
  bool consecutive = true;
  std::vector<int64_t> count(static_cast<size_t>(groups));
  for (int64_t k = 0; k < K_; ++k) {
    const int32_t g = w.g_idx[static_cast<size_t>(k)];
    if (g < 0 || g >= groups) {
      return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED",
                       absl::StrCat(kernel_, ": g_idx must be in 0 .. ", groups - 1, ", got ", g));
    }
    ++count[static_cast<size_t>(g)];
    consecutive = consecutive && g == k / w.group_size;
  }
  if (consecutive) return absl::OkStatus();
  int64_t places = *std::max_element(count.begin(), count.end());
  if (places > 256) places = (places + 63) / 64 * 64;  // so that a block of activations divides it
  if (groups * places > 2 * K_ + 64) {
    return MakeError(absl::StatusCode::kInvalidArgument, "GROUPS_TOO_UNEQUAL",
                     absl::StrCat(kernel_, ": groups of g_idx must be about equally long, got ", groups, " groups of ",
                                  K_, " inputs, the longest with ", places));
  }
  form_.order.assign(static_cast<size_t>(groups * places), -1);
  std::fill(count.begin(), count.end(), 0);
  for (int64_t k = 0; k < K_; ++k) {
    const int32_t g = w.g_idx[static_cast<size_t>(k)];
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
  if (!w.g_idx.empty()) SAGE_RETURN_IF_ERROR(SortByGroup(w, groups, &group_size));
  form_.block = BlockOf(group_size);
  if (groups > 1 && !BlocksFitGroups(groups * group_size, group_size)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "GROUP_SIZE_NOT_SUPPORTED",
                     absl::StrCat(kernel_, ": ", GroupRule(group_size)));
  }
  form_.activations = w.activations;
  ChooseLayout(nibbles);
  const int64_t inputs = form_.order.empty() ? K_ : static_cast<int64_t>(form_.order.size());
  groups_ = groups;
  blocks_ = (inputs + form_.block - 1) / form_.block;
  blocks_per_group_ = groups == 1 ? blocks_ : group_size / form_.block;
  const int64_t panels = (N_ + 15) / 16;
  SAGE_ASSIGN_OR_RETURN(codes_, Tensor::Allocate(DType::kU8, {panels * blocks_ * BlockBytes()}));
  SAGE_ASSIGN_OR_RETURN(scale_, Tensor::Allocate(DType::kF32, {panels, groups, 16}));
  if (!w.offset.empty()) {
    SAGE_ASSIGN_OR_RETURN(offset_, Tensor::Allocate(DType::kF32, {panels, groups, 16}));
  }
  if (form_.bytes && w.activations.zero != 0) {
    SAGE_ASSIGN_OR_RETURN(shift_, Tensor::Allocate(DType::kI32, {panels, blocks_, 16}));
  }
  threads.ParallelFor(panels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) PackPanel(w, p);
  });
  bias_ = std::move(weight.bias);
  return absl::OkStatus();
}

// Quads for 8-bit activations where the tier has exact products of bytes, else pairs for int16.
void PanelLinear::ChooseLayout(bool nibbles) {
  const bool eight = form_.activations.eight_bits;
  form_.bytes = eight && (nibbles || tier_.int8_quads);
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
                     " ", form_.activations.zero, " ", form_.name);
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
        const int code = (codes[i] + 8) & 15;
        to[i / 4 * 32 + r * 2 + i % 2] |= static_cast<uint8_t>(i % 4 < 2 ? code : code << 4);
      }
      break;
    case PanelLayout::kNibbleQuads:
      for (int64_t i = 0; i < padded; ++i) {
        const int code = (codes[i] + 8) & 15;
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
      for (int64_t i = 0; i < size; ++i) sum += some[i] + CodeBias();
      shift_.as<int32_t>()[(panel * blocks_ + b) * 16 + r] = -form_.activations.zero * sum;
    }
    for (int64_t g = 0; g < groups_; ++g) {
      const size_t from = static_cast<size_t>((panel * 16 + r) * groups_ + g);
      const int64_t to = (panel * groups_ + g) * 16 + r;
      scale_.as<float>()[to] = r < rows ? w.scale[from] : 0.0f;
      if (!offset_.empty()) offset_.as<float>()[to] = r < rows ? w.offset[from] : 0.0f;
    }
  }
}

}  // namespace

std::string RefusePanels(const LinearKernelQuery& query) {
  const int64_t group = query.group_size;
  if (group == 0 || group < -1) return absl::StrCat("group_size must be positive or -1, got ", group);
  if (group == -1 || (query.K == 0 && group <= 256)) return "";
  return BlocksFitGroups(query.K == 0 ? group + 1 : query.K, group) ? "" : GroupRule(group);
}

std::string RefuseBlocks(const LinearKernelQuery& query) {
  return query.K % 32 == 0 ? "" : absl::StrCat("K must be a multiple of 32, got ", query.K);
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindDense(LinearWeight weight, const TierFns& tier, std::string kernel) {
  const DType dtype = weight.dense.values.dtype;
  const auto fn = dtype == DType::kF32    ? tier.dense_f32
                  : dtype == DType::kF16  ? tier.dense_f16
                  : dtype == DType::kBF16 ? tier.dense_bf16
                                          : nullptr;
  if (fn == nullptr || weight.dense.values.shape != Shape{weight.N, weight.K}) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_DENSE",
                     absl::StrCat(kernel, ": weight must be [", weight.N, ", ", weight.K, "] f32, f16 or bf16, got ",
                                  ShapeText(weight.dense.values.shape), " ", std::string(DTypeName(dtype))));
  }
  return std::make_unique<DenseLinear>(std::move(weight), fn, std::move(kernel));
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindPanels(LinearWeight weight, bool nibbles, ThreadPool& threads,
                                                        const TierFns& tier, std::string kernel) {
  const IntegerWeight& w = weight.integer;
  const auto refuse = [&](const std::string& rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED", absl::StrCat(kernel, ": ", rule));
  };
  if (w.group_size <= 0) return refuse("group_size must be positive");
  if (static_cast<int64_t>(w.codes.size()) != weight.N * weight.K) return refuse("codes must be [N, K]");
  if (!w.codes_signed && (w.bits == 8 || nibbles)) return refuse("codes must be signed");
  if (nibbles && w.bits > 4) return refuse(absl::StrCat("codes must have at most 4 bits, got ", w.bits));
  const size_t scales = static_cast<size_t>(weight.N * ((weight.K + w.group_size - 1) / w.group_size));
  if (w.scale.size() != scales || (!w.offset.empty() && w.offset.size() != scales)) {
    return refuse(absl::StrCat("scale and offset must be [N, G], ", scales, " values"));
  }
  if (!w.g_idx.empty() && static_cast<int64_t>(w.g_idx.size()) != weight.K) return refuse("g_idx must be [K]");
  auto out = std::make_unique<PanelLinear>(tier, std::move(kernel));
  SAGE_RETURN_IF_ERROR(out->Pack(std::move(weight), nibbles, threads));
  return out;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindBlocks(LinearWeight weight, const TierFns& tier, std::string kernel) {
  const std::string& type = weight.blocks.type;
  const auto fn = type == "q4_0"   ? tier.blocks_q4_0
                  : type == "q4_1" ? tier.blocks_q4_1
                  : type == "q8_0" ? tier.blocks_q8_0
                                   : nullptr;
  const int64_t block_bytes = type == "q4_0" ? 18 : type == "q4_1" ? 20 : 34;
  const int64_t row_bytes = weight.K / 32 * block_bytes;
  if (fn == nullptr || weight.K % 32 != 0 || weight.blocks.bytes != static_cast<size_t>(row_bytes * weight.N)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_SUPPORTED",
                     absl::StrCat(kernel, ": blocks of type '", type, "' must fill [", weight.N, ", ", weight.K,
                                  "], got ", weight.blocks.bytes, " bytes"));
  }
  return std::make_unique<BlockLinear>(std::move(weight), fn, row_bytes, tier, std::move(kernel));
}

}  // namespace sage::cpu
