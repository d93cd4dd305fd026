// Integer weights in panels of 16 outputs: what the bound layers of integer codes and of ggml blocks share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/api/backend.h"
#include "engine/backends/cpu/kernels/tier.h"
#include "engine/backends/cpu/weight_memory.h"

namespace sage::cpu {

// What a layer makes of an activation row before the product.
struct RowForm {
  int64_t block = 0;
  int64_t row_bytes = 0;  // of a block
  bool bytes = false;     // int8 codes instead of int16
  // Act-order layers and padded groups: the input that each place takes, -1 for padding. Empty: inputs as they come.
  std::vector<int32_t> order;
  // Equal for equal orders, so that q, k and v with one order share a form and different orders never do.
  std::string name = "int16";
  IntegerActivations activations;

  bool has_token_zeros() const { return activations.eight_bits && !activations.symmetric && activations.scale == 0; }
};

// A bound layer over packed panels. Weights come in by one of the Pack functions.
class PanelLinear final : public BoundLinear {
 public:
  PanelLinear(const TierFns& tier, std::string kernel) : tier_(tier), kernel_(std::move(kernel)) {}

  absl::Status Pack(LinearWeight weight, bool nibbles, ThreadPool& threads);
  // ggml blocks of 32 (quantization.md 1.8), checked by the caller: the same codes and f16 scales in other places.
  absl::Status PackBlocks(LinearWeight weight, ThreadPool& threads);

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override;
  int64_t N() const override { return N_; }
  int64_t K() const override { return K_; }
  size_t weight_bytes() const override { return codes_.bytes() + scale_.bytes() + offset_.bytes() + shift_.bytes(); }
  ReadAhead::Matrix streamed() const override {
    return {{{codes_.as<uint8_t>(), codes_.bytes()},
             {scale_.as<uint8_t>(), scale_.bytes()},
             {offset_.as<uint8_t>(), offset_.bytes()}}};
  }
  std::string kernel() const override { return kernel_; }

 private:
  absl::Status SortByGroup(const IntegerWeight& w, int64_t groups, int64_t* group_size);
  void ChooseLayout(bool nibbles);
  absl::Status Allocate(bool offset);
  void PackPanel(const IntegerWeight& w, int64_t panel);
  void PackCodes(const int8_t* codes, int64_t r, uint8_t* to) const;
  void PackScales(const IntegerWeight& w, int64_t panel, int64_t r);
  bool nibbles() const { return layout_ == PanelLayout::kNibblePairs || layout_ == PanelLayout::kNibbleQuads; }
  // Of one block of a panel.
  int64_t BlockBytes() const {
    return form_.row_bytes / 8 *
           (layout_ == PanelLayout::kNibblePairs ? 32
            : layout_ == PanelLayout::kInt8Quads ? 128
                                                 : 64);
  }

  const TierFns& tier_;
  std::string kernel_;
  RowForm form_;
  PanelLayout layout_ = PanelLayout::kInt8Pairs;
  int code_bias_ = 0;  // what the stored codes have too much
  bool half_ = false;  // scales and offsets are kept as f16
  int64_t N_ = 0, K_ = 0, blocks_ = 0, groups_ = 1, blocks_per_group_ = 1;
  WeightMemory codes_, scale_, offset_, shift_;
  std::vector<float> bias_;
};

}  // namespace sage::cpu
