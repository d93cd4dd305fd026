// A linear layer of the CUDA backend run by the host emulator: the plan, the packing, the conversion of activations and
// the kernel's own code, thread by thread.
#pragma once

#include <cstring>
#include <vector>

#include "engine/backends/cuda/host/linear_plan.h"
#include "engine/backends/cuda/kernels/linear_prepare_kernel.h"
#include "engine/backends/cuda/kernels/linear_stream_kernel.h"
#include "engine/backends/cuda/kernels/linear_tile_kernel.h"

namespace sage::cuda {

// Bytes that begin at a multiple of 128, as device memory does.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t bytes) : memory_(bytes + 128) {}
  template <typename T = uint8_t>
  T* as() {
    return reinterpret_cast<T*>(memory_.data() + (128 - reinterpret_cast<uintptr_t>(memory_.data()) % 128) % 128);
  }

 private:
  std::vector<uint8_t> memory_;
};

struct HostLayer {
  HostLayer(LinearPlan p, int multiprocessors)
      : plan(std::move(p)), codes(plan.code_bytes()), scales(plan.records.size()) {
    CodeSource source = plan.source;
    source.order = plan.order.empty() ? nullptr : plan.order.data();
    const int64_t units = PackedUnits(plan.code, plan.row_blocks, plan.k_blocks);
    for (int64_t i = 0; i < units * 4; ++i) {
      codes.as<uint32_t>()[i] = PackWord(plan.code, source, plan.k_blocks, i / 4, static_cast<int>(i % 4));
    }
    std::memcpy(scales.as(), plan.records.data(), plan.records.size());
    layer = MakeLayer(plan, multiprocessors);
    layer.codes = codes.as();
    layer.scales = scales.as();
    layer.bias = plan.bias.empty() ? nullptr : plan.bias.data();
    layer.table = plan.table.data();
  }

  LinearPlan plan;
  AlignedBytes codes, scales;
  PackedLayer layer;
};

inline RowForm FormOf(Code code) {
  return code == Code::kE4M3A8 ? RowForm::kE4M3 : HasByteActivations(code) ? RowForm::kInt8 : RowForm::kF16;
}

// Converted rows of x [M, K].
struct HostRows {
  HostRows(const LinearPlan& plan, PrepareArgs args, int M, RowSource source)
      : tiles((M + kTokenTile - 1) / kTokenTile),
        codes(static_cast<size_t>(plan.k_blocks) * tiles * ActivationTileBytes(plan.code)),
        token_scale(static_cast<size_t>(tiles) * kTokenTile),
        chunk(static_cast<size_t>(plan.k_blocks) * plan.chunks * tiles * kTokenTile * sizeof(float)) {
    args.order = plan.order.empty() ? nullptr : plan.order.data();
    args.K = static_cast<int>(plan.K);
    args.places = static_cast<int>(plan.source.places);
    args.k_blocks = plan.k_blocks;
    args.tiles = tiles;
    args.chunks = plan.fold == Fold::kScale ? 0 : plan.chunks;
    args.codes = codes.as();
    args.token_scale = token_scale.data();
    args.chunk = chunk.as<float>();
    const auto run = [&](auto kernel) {
      simt::Launch({static_cast<unsigned>(M), 1, 1}, {kPrepareThreads, 1, 1}, PrepareShared(plan.k_blocks),
                   [&] { kernel(args); });
    };
    const RowForm form = FormOf(plan.code);
    if (source == RowSource::kRmsNorm) {
      run(form == RowForm::kF16    ? PrepareRows<RowForm::kF16, RowSource::kRmsNorm>
          : form == RowForm::kInt8 ? PrepareRows<RowForm::kInt8, RowSource::kRmsNorm>
                                   : PrepareRows<RowForm::kE4M3, RowSource::kRmsNorm>);
    } else if (source == RowSource::kSiluMul) {
      run(form == RowForm::kF16    ? PrepareRows<RowForm::kF16, RowSource::kSiluMul>
          : form == RowForm::kInt8 ? PrepareRows<RowForm::kInt8, RowSource::kSiluMul>
                                   : PrepareRows<RowForm::kE4M3, RowSource::kSiluMul>);
    } else {
      run(form == RowForm::kF16    ? PrepareRows<RowForm::kF16, RowSource::kPlain>
          : form == RowForm::kInt8 ? PrepareRows<RowForm::kInt8, RowSource::kPlain>
                                   : PrepareRows<RowForm::kE4M3, RowSource::kPlain>);
    }
    rows = {codes.as(), token_scale.data(), chunk.as<float>(), M, tiles};
  }

  int tiles;
  AlignedBytes codes;
  std::vector<float> token_scale;
  AlignedBytes chunk;
  PreparedRows rows;
};

enum class HostKernel { kByTokens, kTile };

template <Code kCode, Fold kFold>
std::vector<float> RunKernel(HostLayer& host, const PreparedRows& rows, HostKernel which, size_t workspace_bytes) {
  const int64_t N = host.plan.N;
  std::vector<float> out(static_cast<size_t>(rows.M * N), -1.0f);
  std::vector<float> workspace(workspace_bytes / sizeof(float), -2.0f);
  std::vector<uint32_t> counters(static_cast<size_t>(LinearCounters(host.layer.row_blocks)));
  const LinearOutput output{out.data(), N, workspace.data(), workspace_bytes, counters.data()};
  const LaunchLimits limits{4, 227 * 1024};
  const auto run = [&](const LaunchShape& shape, auto kernel, auto args) {
    simt::Launch({shape.x, shape.y, shape.z}, {shape.threads, 1, 1}, shape.shared_bytes, [&] { kernel(args); });
  };
  LaunchShape shape;
  if (which == HostKernel::kByTokens && rows.M <= kTokenTile) {
    shape = ShapeStream<kCode, 1, kFold>(host.layer, output, limits);
    if (shape.fits) run(shape, LinearStream<kCode, 1, kFold>, StreamArgs{host.layer, rows, output, shape.stage});
  } else if (which == HostKernel::kByTokens && rows.M <= kStreamTokens) {
    shape = ShapeStream<kCode, 2, kFold>(host.layer, output, limits);
    if (shape.fits) run(shape, LinearStream<kCode, 2, kFold>, StreamArgs{host.layer, rows, output, shape.stage});
  }
  if (!shape.fits) {
    shape = ShapeTile<kCode, kFold>(host.layer, rows, output, limits);
    run(shape, LinearTile<kCode, kFold>, TileArgs{host.layer, rows, output, shape.stage});
  }
  for (const uint32_t counter : counters) {
    if (counter != 0) out.clear();
  }
  return out;
}

// [M, N], empty when the kernels left a counter behind.
inline std::vector<float> RunLinear(HostLayer& host, const float* x, int M, HostKernel which = HostKernel::kByTokens,
                                    size_t workspace_bytes = size_t{64} << 20, PrepareArgs args = {},
                                    RowSource source = RowSource::kPlain) {
  if (args.x == nullptr) {
    args.x = x;
    args.x_stride = host.plan.K;
  }
  const HostRows prepared(host.plan, args, M, source);
  const PreparedRows& rows = prepared.rows;
  const bool offset = host.plan.fold == Fold::kOffset;
  switch (host.plan.code) {
    case Code::kInt4:
      return offset ? RunKernel<Code::kInt4, Fold::kOffset>(host, rows, which, workspace_bytes)
                    : RunKernel<Code::kInt4, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kInt8:
      return offset ? RunKernel<Code::kInt8, Fold::kOffset>(host, rows, which, workspace_bytes)
                    : RunKernel<Code::kInt8, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kTable16:
      return RunKernel<Code::kTable16, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kE4M3:
      return RunKernel<Code::kE4M3, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kE5M2:
      return RunKernel<Code::kE5M2, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kInt4A8:
      return offset ? RunKernel<Code::kInt4A8, Fold::kOffset>(host, rows, which, workspace_bytes)
                    : RunKernel<Code::kInt4A8, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kInt8A8:
      return offset ? RunKernel<Code::kInt8A8, Fold::kOffset>(host, rows, which, workspace_bytes)
                    : RunKernel<Code::kInt8A8, Fold::kScale>(host, rows, which, workspace_bytes);
    case Code::kE4M3A8:
      return host.plan.fold == Fold::kTokenScale
                 ? RunKernel<Code::kE4M3A8, Fold::kTokenScale>(host, rows, which, workspace_bytes)
                 : RunKernel<Code::kE4M3A8, Fold::kScale>(host, rows, which, workspace_bytes);
  }
  return {};
}

}  // namespace sage::cuda
