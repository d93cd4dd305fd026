// Places packed layers on the device and runs them.
#include "engine/backends/cuda/packed_linear.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/backends/cuda/kernels/linear_prepare.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

LinearLauncher LauncherOf(Code code, Fold fold) {
  const bool offset = fold == Fold::kOffset;
  switch (code) {
    case Code::kInt4:
      return offset ? LaunchInt4Offset : LaunchInt4;
    case Code::kInt8:
      return offset ? LaunchInt8Offset : LaunchInt8;
    case Code::kTable16:
      return LaunchTable16;
    case Code::kE4M3:
      return LaunchE4M3;
    case Code::kE5M2:
      return LaunchE5M2;
    case Code::kInt4A8:
      return offset ? LaunchInt4A8Offset : LaunchInt4A8;
    case Code::kInt8A8:
      return offset ? LaunchInt8A8Offset : LaunchInt8A8;
    case Code::kE4M3A8:
      return fold == Fold::kTokenScale ? LaunchE4M3A8Groups : LaunchE4M3A8;
  }
  return nullptr;
}

}  // namespace

absl::Status PackedLinear::Place(const LinearWeight& weight) {
  SAGE_ASSIGN_OR_RETURN(plan_, PlanLinear(weight, kernel_));
  layer_ = MakeLayer(plan_, device_.traits().multiprocessors);
  launch_ = LauncherOf(plan_.code, plan_.fold);
  SAGE_ASSIGN_OR_RETURN(records_, device_.Place(plan_.records.data(), plan_.records.size()));
  layer_.scales = records_.as<uint8_t>();
  if (!plan_.order.empty()) {
    SAGE_ASSIGN_OR_RETURN(order_, device_.Place(plan_.order.data(), plan_.order.size() * sizeof(int32_t)));
  }
  if (!plan_.table.empty()) {
    SAGE_ASSIGN_OR_RETURN(table_, device_.Place(plan_.table.data(), plan_.table.size() * sizeof(uint16_t)));
    layer_.table = table_.as<uint16_t>();
  }
  if (!plan_.bias.empty()) {
    SAGE_ASSIGN_OR_RETURN(bias_, device_.Place(plan_.bias.data(), plan_.bias.size() * sizeof(float)));
    layer_.bias = bias_.as<float>();
  }
  SAGE_ASSIGN_OR_RETURN(counters_,
                        device_.Allocate(static_cast<size_t>(LinearCounters(plan_.row_blocks)) * sizeof(uint32_t)));
  SAGE_ASSIGN_OR_RETURN(codes_, device_.Allocate(plan_.code_bytes()));
  {
    SAGE_ASSIGN_OR_RETURN(const DeviceBuffer raw, device_.Place(plan_.source.data, plan_.source_bytes));
    CodeSource source = plan_.source;
    source.data = raw.as<uint8_t>();
    source.order = order_.as<int32_t>();
    device_.Note(
        LaunchPack(plan_.code, source, plan_.row_blocks, plan_.k_blocks, codes_.as<uint8_t>(), device_.stream()),
        kernel_.c_str());
  }  // freed in the order of the stream, after the packing
  layer_.codes = codes_.as<uint8_t>();

  form_ = plan_.code == Code::kE4M3A8      ? RowForm::kE4M3
          : HasByteActivations(plan_.code) ? RowForm::kInt8
                                           : RowForm::kF16;
  prepare_.order = order_.as<int32_t>();
  prepare_.K = static_cast<int>(plan_.K);
  prepare_.places = static_cast<int>(plan_.source.places);
  prepare_.k_blocks = plan_.k_blocks;
  prepare_.chunks = plan_.fold == Fold::kScale ? 0 : plan_.chunks;
  if (form_ == RowForm::kInt8) {
    prepare_.static_scale = weight.integer.activations.scale;
    prepare_.zero = weight.integer.activations.zero;
  } else if (form_ == RowForm::kE4M3) {
    const FloatActivations& a = weight.floats.activations;
    prepare_.static_scale = a.kind == FloatActivations::Kind::kStatic ? a.scale : 0;
    prepare_.scale_group = plan_.fold == Fold::kTokenScale ? a.group_size : 0;
  }
  form_name_ = absl::StrCat("tiles", static_cast<int>(form_), " ", prepare_.chunks, " ", prepare_.scale_group, " ",
                            std::bit_cast<uint32_t>(prepare_.static_scale), " ", prepare_.zero);
  if (!plan_.order.empty()) {
    absl::StrAppend(
        &form_name_, " ",
        Sha256Hex({reinterpret_cast<const char*>(plan_.order.data()), plan_.order.size() * sizeof(int32_t)}));
  }
  ordered_ = !plan_.order.empty();
  plan_.records = {};
  plan_.order = {};
  plan_.source.data = nullptr;
  plan_.source.order = nullptr;
  return device_.TakeStatus();
}

PreparedRows PackedLinear::Prepare(StepContext& ctx, const StepValue& x) const {
  PreparedRows rows;
  rows.M = static_cast<int>(x.M);
  rows.tiles = static_cast<int>((x.M + kTokenTile - 1) / kTokenTile);
  const auto tiles = static_cast<size_t>(rows.tiles), tokens = tiles * kTokenTile;
  const size_t codes = tiles * static_cast<size_t>(plan_.k_blocks) * ActivationTileBytes(plan_.code);
  const size_t chunks = static_cast<size_t>(plan_.k_blocks) * static_cast<size_t>(prepare_.chunks) * tokens;
  uint8_t* const memory =
      ctx.activations->Get(x.id, form_name_, codes + (tokens + chunks) * sizeof(float), [&](uint8_t* to) {
        PrepareArgs args = prepare_;
        args.x = x.data;
        args.x_stride = x.stride;
        args.tiles = rows.tiles;
        args.codes = to;
        args.token_scale = reinterpret_cast<float*>(to + codes);
        args.chunk = args.token_scale + tokens;
        device_.Note(LaunchPrepare(form_, RowSource::kPlain, args, rows.M, device_.stream()), kernel_.c_str());
      });
  if (memory == nullptr) {
    device_.Note(cudaErrorMemoryAllocation, "converted activations");
    return rows;
  }
  rows.codes = memory;
  rows.token_scale = reinterpret_cast<const float*>(memory + codes);
  rows.chunk = rows.token_scale + tokens;
  return rows;
}

void PackedLinear::Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const {
  if (x.M < 1) return;
  const PreparedRows rows = Prepare(ctx, x);
  if (rows.codes == nullptr) return;
  const DeviceBuffer& workspace = device_.workspace();
  const LinearOutput output{out, out_stride, workspace.as<float>(), workspace.bytes(), counters_.as<uint32_t>()};
  const DeviceTraits& traits = device_.traits();
  device_.Note(launch_(layer_, rows, output, {traits.multiprocessors, traits.shared_bytes}, device_.stream()),
               kernel_.c_str());
}

}  // namespace sage::cuda
