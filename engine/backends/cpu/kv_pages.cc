// Stores rows into pages and cuts attention into tasks: rows of one sequence and kv head, and where there are too few
// of those for the threads, the parts of their positions.
#include "engine/backends/cpu/kv_pages.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "engine/backends/cpu/kv_page_format.h"
#include "engine/backends/cpu/tiers.h"
#include "engine/base/status.h"

namespace sage::cpu {
namespace {

// Query values times positions below which one thread attends alone: pages are cold in every step, so even a few
// positions take microseconds.
constexpr int64_t kInlineAttention = 8 * 1024;

// Rows of one sequence and one kv head; their positions are parts [part_begin, part_end).
struct Piece {
  int32_t sequence, head;
  int64_t row, rows;
  int64_t part_begin, part_end;
  float* partial = nullptr;  // states of the parts, when they run on their own
};

class KvPages final : public KvKernel {
 public:
  KvPages(const KvLayout& layout, KvFormat format, const TierFns& tier, std::string kernel)
      : layout_(layout),
        format_(layout, format),
        offsets_(format_.offsets()),
        // Codes by calibrated channel are plain integers; their factors are in q and in what comes out.
        attend_(tier.attend[static_cast<int>(format_.factors(true).empty() ? format : KvFormat::kInt8)]),
        combine_(tier.combine_parts),
        kernel_(std::move(kernel)) {}

  size_t page_bytes() const override { return format_.page_bytes(); }
  std::string kernel() const override { return kernel_; }

  void Store(StepContext& ctx, uint8_t* arena, const float* k, int64_t k_stride, const float* v, int64_t v_stride,
             const StepSequences& sequences) const override {
    const int64_t tokens = layout_.page_tokens;
    for (const SequenceSlice& s : sequences.slices) {
      // Rows in order within a page, pages in any order.
      const auto pages = [&](int64_t begin, int64_t end) {
        const int64_t first = std::max<int64_t>(0, (s.context / tokens + begin) * tokens - s.context);
        const int64_t last = std::min(s.rows, (s.context / tokens + end) * tokens - s.context);
        for (int64_t r = first; r < last; ++r) {
          const int64_t position = s.context + r;
          const int64_t i = position / tokens;
          const int slot = static_cast<int>(position % tokens);
          const float* const k_row = k + (s.row_begin + r) * k_stride;
          const float* const v_row = v + (s.row_begin + r) * v_stride;
          const auto page = [&](int64_t entry) { return arena + int64_t{s.pages[entry]} * offsets_.page; };
          const int64_t entry = KvPageIndex(i, layout_.sink_pages);
          if (i < layout_.sink_pages && format_.sink_head() > 0) {
            format_.StoreSink(page(entry), page(entry + 1), slot, k_row, v_row);
          } else {
            format_.StoreRow(page(entry), slot, k_row, v_row);
          }
        }
      };
      if (s.rows == 0) continue;
      const int64_t count = (s.context + s.rows - 1) / tokens - s.context / tokens + 1;
      if (s.rows < 32) {
        pages(0, count);
      } else {
        ctx.threads->ParallelFor(count, 1, pages);
      }
    }
  }

  void Attend(StepContext& ctx, const uint8_t* arena, const AttentionArgs& args) const override {
    if (format_.factors(true).empty()) return AttendCodes(ctx, arena, args);
    // q . ((c - z) s) is (q s) . c less what is the same for every position, which a softmax does not see.
    int64_t M = 0;
    for (const SequenceSlice& s : args.sequences.slices) M = std::max(M, s.row_begin + s.rows);
    const int64_t width = int64_t{args.H} * layout_.D;
    const auto scaled = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(M * width));
    AttentionArgs codes = args;
    codes.q = scaled.get();
    codes.q_stride = width;
    ForEachChannel(args, [&](int64_t row, int64_t column, size_t channel) {
      scaled[static_cast<size_t>(row * width + column)] =
          args.q[row * args.q_stride + column] * format_.factors(true)[channel];
    });
    AttendCodes(ctx, arena, codes);
    ForEachChannel(args, [&](int64_t row, int64_t column, size_t channel) {
      float& out = args.out[row * args.out_stride + column];
      out = (out - format_.zeros(false)[channel]) * format_.factors(false)[channel];
    });
  }

  void Load(const uint8_t* arena, int32_t page, int slot, float* k, float* v) const override {
    format_.LoadRow(arena + int64_t{page} * offsets_.page, slot, k, v);
  }

 private:
  // visit(row, column of q and out, channel of the kv head) for every row of the sequences.
  template <typename Visit>
  void ForEachChannel(const AttentionArgs& args, const Visit& visit) const {
    const int64_t group = args.H / layout_.KH, D = layout_.D;
    for (const SequenceSlice& s : args.sequences.slices) {
      for (int64_t row = s.row_begin; row < s.row_begin + s.rows; ++row) {
        for (int64_t h = 0; h < args.H; ++h) {
          for (int64_t d = 0; d < D; ++d) visit(row, h * D + d, static_cast<size_t>(h / group * D + d));
        }
      }
    }
  }

  void AttendCodes(StepContext& ctx, const uint8_t* arena, const AttentionArgs& args) const {
    int64_t work = 0;
    std::vector<Piece> pieces = Cut(args, &work);
    const int group = args.H / layout_.KH, threads = work < kInlineAttention ? 1 : ctx.threads->size();
    // Parts on their own: {piece, part}. Whether they are does not change a bit.
    std::vector<std::pair<int32_t, int64_t>> tasks;
    const bool split = threads > 1 && static_cast<int64_t>(pieces.size()) < 8 * threads;
    const int64_t state = AttentionStateFloats(layout_.D);
    int64_t partial_floats = 0;
    for (const Piece& p : pieces) {
      if (split && p.part_end - p.part_begin > 1)
        partial_floats += (p.part_end - p.part_begin) * p.rows * group * state;
    }
    const auto partial = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(partial_floats));
    float* next = partial.get();
    // Late rows see more keys: begin with them, so that no long task is left for the end.
    for (size_t i = pieces.size(); i-- > 0;) {
      Piece& p = pieces[i];
      const int64_t parts = split ? p.part_end - p.part_begin : 1;
      if (parts > 1) {
        p.partial = next;
        next += parts * p.rows * group * state;
      }
      for (int64_t part = 0; part < parts; ++part) tasks.emplace_back(static_cast<int32_t>(i), part);
    }
    const int64_t floats = AttentionScratchFloats(group, layout_.D);
    const auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(floats * threads));
    const auto run = [&](int64_t i, int worker) {
      const auto& [piece, part] = tasks[static_cast<size_t>(i)];
      const Piece& p = pieces[static_cast<size_t>(piece)];
      AttentionTask task = Task(arena, args, p, scratch.get() + floats * worker);
      if (p.partial != nullptr) {
        task.part_begin += part;
        task.part_end = task.part_begin + 1;
        task.partial = p.partial + part * p.rows * group * state;
      }
      attend_(task);
    };
    if (threads == 1) {
      for (size_t i = 0; i < tasks.size(); ++i) run(static_cast<int64_t>(i), 0);
    } else {
      ctx.threads->Run(static_cast<int64_t>(tasks.size()), run);
    }
    for (const Piece& p : pieces) {
      if (p.partial == nullptr) continue;
      combine_(p.partial, p.part_end - p.part_begin, Task(arena, args, p, scratch.get()));
    }
  }

  std::vector<Piece> Cut(const AttentionArgs& args, int64_t* work) const {
    std::vector<Piece> pieces;
    const int64_t most = RowsPerTask(args.H / layout_.KH);
    for (size_t s = 0; s < args.sequences.slices.size(); ++s) {
      const SequenceSlice& slice = args.sequences.slices[s];
      *work += slice.rows * (slice.context + slice.rows) * args.H * layout_.D;
      for (int64_t row = 0; row < slice.rows; row += most) {
        const int64_t rows = std::min(most, slice.rows - row), position = slice.context + row;
        const int64_t first = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
        for (int h = 0; h < layout_.KH; ++h) {
          pieces.push_back({static_cast<int32_t>(s), h, row, rows, first / kPartKeys,
                            (position + rows + kPartKeys - 1) / kPartKeys});
        }
      }
    }
    return pieces;
  }

  AttentionTask Task(const uint8_t* arena, const AttentionArgs& args, const Piece& p, float* scratch) const {
    const SequenceSlice& s = args.sequences.slices[static_cast<size_t>(p.sequence)];
    AttentionTask task{};
    task.group = args.H / layout_.KH;
    const int64_t column = int64_t{p.head} * task.group * layout_.D;
    task.q = args.q + (s.row_begin + p.row) * args.q_stride + column;
    task.q_row_stride = args.q_stride;
    task.out = args.out + (s.row_begin + p.row) * args.out_stride + column;
    task.out_row_stride = args.out_stride;
    task.D = layout_.D;
    task.scale = args.scale;
    task.rows = p.rows;
    task.first_position = s.context + p.row;
    task.window = args.window;
    task.part_begin = p.part_begin;
    task.part_end = p.part_end;
    task.arena = arena + p.head * offsets_.head;
    task.pages = s.pages;
    task.offsets = offsets_;
    task.page_tokens = layout_.page_tokens;
    task.sink_pages = layout_.sink_pages;
    task.sinks = arena + p.head * format_.sink_head();
    task.scratch = scratch;
    return task;
  }

  KvLayout layout_;
  KvPageFormat format_;
  KvOffsets offsets_;
  void (*attend_)(const AttentionTask&);
  void (*combine_)(const float*, int64_t, const AttentionTask&);
  std::string kernel_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvKernel>> BindKvPages(const KvLayout& layout, KvFormat format, const TierFns& tier,
                                                      std::string kernel) {
  SAGE_RETURN_IF_ERROR(CheckKvScales(layout, format));
  return std::make_unique<KvPages>(layout, format, tier, std::move(kernel));
}

std::string RefuseKvPages(const KvLayout& layout, const std::string& tier, const CpuFeatures& cpu) {
  std::string reason = RefuseTier(tier, cpu);
  return reason.empty() ? RefuseKvLayout(layout) : reason;
}

}  // namespace sage::cpu
