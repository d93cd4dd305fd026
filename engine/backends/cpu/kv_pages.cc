// Stores rows into pages and cuts attention into tasks of one (sequence, kv head, run of rows).
#include "engine/backends/cpu/kv_pages.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tensor/float_convert.h"

namespace sage::cpu {
namespace {

// Rows of a prompt that one task computes: small enough that two threads finish together.
constexpr int64_t kRowsPerTask = 16;

class KvPages final : public KvKernel {
 public:
  KvPages(const KvLayout& layout, KvFormat format, const TierFns& tier, std::string kernel)
      : layout_(layout), format_(format), tier_(tier), kernel_(std::move(kernel)) {}

  size_t page_bytes() const override { return static_cast<size_t>(2 * layout_.KH * half_bytes()); }
  std::string kernel() const override { return kernel_; }

  void Store(StepContext& ctx, uint8_t* arena, const float* k, int64_t k_stride, const float* v, int64_t v_stride,
             absl::Span<const SequenceSlice> sequences) const override {
    for (const SequenceSlice& s : sequences) {
      const auto rows = [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t position = s.context + r;
          const int32_t page = s.pages[position / layout_.page_tokens];
          StoreRow(arena, page, static_cast<int>(position % layout_.page_tokens), k + (s.row_begin + r) * k_stride, 0);
          StoreRow(arena, page, static_cast<int>(position % layout_.page_tokens), v + (s.row_begin + r) * v_stride,
                   half_bytes());
        }
      };
      if (s.rows < 32) {
        rows(0, s.rows);
      } else {
        ctx.threads->ParallelFor(s.rows, 16, rows);
      }
    }
  }

  void Attend(StepContext& ctx, const uint8_t* arena, const AttentionArgs& args) const override {
    struct Piece {
      int32_t sequence, head;
      int64_t row, rows;
    };
    std::vector<Piece> pieces;
    int64_t work = 0;
    for (size_t s = 0; s < args.sequences.size(); ++s) {
      const SequenceSlice& slice = args.sequences[s];
      work += slice.rows * (slice.context + slice.rows) * args.H * layout_.D;
      for (int64_t row = 0; row < slice.rows; row += kRowsPerTask) {
        for (int h = 0; h < layout_.KH; ++h) {
          pieces.push_back({static_cast<int32_t>(s), h, row, std::min(kRowsPerTask, slice.rows - row)});
        }
      }
    }
    const int group = args.H / layout_.KH;
    const int64_t floats = AttentionScratchFloats(group, layout_.D);
    std::vector<float> scratch(static_cast<size_t>(floats * ctx.threads->size()));
    const auto run = [&](int64_t i, int worker) {
      // Late rows see more keys: begin with them, so that no long piece is left for the end.
      const Piece& piece = pieces[pieces.size() - 1 - static_cast<size_t>(i)];
      Task(arena, args, args.sequences[static_cast<size_t>(piece.sequence)], piece.head, piece.row, piece.rows,
           scratch.data() + floats * worker);
    };
    if (work < 64 * 1024) {
      for (size_t i = 0; i < pieces.size(); ++i) run(static_cast<int64_t>(i), 0);
    } else {
      ctx.threads->Run(static_cast<int64_t>(pieces.size()), run);
    }
  }

  void Load(const uint8_t* arena, int32_t page, int slot, float* k, float* v) const override {
    for (int h = 0; h < layout_.KH; ++h) {
      const uint8_t* head = arena + page * static_cast<int64_t>(page_bytes()) + h * 2 * half_bytes();
      for (int d = 0; d < layout_.D; ++d) {
        k[h * layout_.D + d] = Element(head, slot, d);
        v[h * layout_.D + d] = Element(head + half_bytes(), slot, d);
      }
    }
  }

 private:
  int64_t padded() const { return (layout_.D + 15) / 16 * 16; }
  int64_t element() const { return format_ == KvFormat::kF32 ? 4 : 2; }
  // Bytes of K (or V) of one head in one page.
  int64_t half_bytes() const { return layout_.page_tokens * padded() * element(); }

  float Element(const uint8_t* half, int slot, int d) const {
    const int64_t i = slot * padded() + d;
    if (format_ == KvFormat::kF32) return reinterpret_cast<const float*>(half)[i];
    return BF16ToFloat(reinterpret_cast<const uint16_t*>(half)[i]);
  }

  void StoreRow(uint8_t* arena, int32_t page, int slot, const float* row, int64_t offset) const {
    for (int h = 0; h < layout_.KH; ++h) {
      uint8_t* half = arena + page * static_cast<int64_t>(page_bytes()) + h * 2 * half_bytes() + offset;
      const float* from = row + h * layout_.D;
      if (format_ == KvFormat::kF32) {
        std::memcpy(reinterpret_cast<float*>(half) + slot * padded(), from,
                    static_cast<size_t>(layout_.D) * sizeof(float));
      } else {
        uint16_t* to = reinterpret_cast<uint16_t*>(half) + slot * padded();
        for (int d = 0; d < layout_.D; ++d) to[d] = FloatToBF16(from[d]);
      }
    }
  }

  void Task(const uint8_t* arena, const AttentionArgs& args, const SequenceSlice& s, int head, int64_t row,
            int64_t rows, float* scratch) const {
    const int group = args.H / layout_.KH;
    AttentionTask task;
    const int64_t column = static_cast<int64_t>(head) * group * layout_.D;
    task.q = args.q + (s.row_begin + row) * args.q_stride + column;
    task.q_row_stride = args.q_stride;
    task.out = args.out + (s.row_begin + row) * args.out_stride + column;
    task.out_row_stride = args.out_stride;
    task.group = group;
    task.D = layout_.D;
    task.scale = args.scale;
    task.rows = rows;
    task.first_position = s.context + row;
    task.window = args.window;
    task.arena = arena;
    task.pages = s.pages;
    task.page_bytes = static_cast<int64_t>(page_bytes());
    task.head_offset = head * 2 * half_bytes();
    task.value_offset = half_bytes();
    task.page_tokens = layout_.page_tokens;
    task.scratch = scratch;
    (format_ == KvFormat::kF32 ? tier_.attend_f32 : tier_.attend_bf16)(task);
  }

  KvLayout layout_;
  KvFormat format_;
  const TierFns& tier_;
  std::string kernel_;
};

}  // namespace

int64_t AttentionScratchFloats(int group, int D) {
  const int64_t padded = (D + 15) / 16 * 16;
  return (group * (2 * padded + 32 + 3) + 63) / 64 * 64;
}

absl::StatusOr<std::unique_ptr<KvKernel>> BindKvPages(const KvLayout& layout, KvFormat format, const TierFns& tier,
                                                      std::string kernel) {
  if (layout.KH < 1 || layout.D < 1 || layout.page_tokens < 1) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_KV_LAYOUT",
                     absl::StrCat(kernel, ": sizes must be positive, got KH=", layout.KH, ", D=", layout.D,
                                  ", page_tokens=", layout.page_tokens));
  }
  return std::make_unique<KvPages>(layout, format, tier, std::move(kernel));
}

}  // namespace sage::cpu
