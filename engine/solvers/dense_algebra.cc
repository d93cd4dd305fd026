// The matrix product's driver: packs a block of the summed dimension, then runs tiles over all threads.
#include "engine/solvers/dense_algebra.h"

#include <algorithm>
#include <cstring>

namespace sage {
namespace {

constexpr int kMostTileElements = 12 * 32;
constexpr int kMostTileRows = 12;
// Rows and columns of the part of c that one task computes: its packed rows stay in the second-level cache.
constexpr int64_t kTaskRows = 96, kTaskColumns = 256;
// Blocks of the summed dimension that are packed together: c is gone through once for all of them.
constexpr int64_t kBlocksAtOnce = 4;
// Multiply-adds and packed values below which another thread costs more than it saves.
constexpr int64_t kLeastTask = int64_t{1} << 19, kLeastPacked = int64_t{1} << 15;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where results go: dense rows, or the upper triangle row after row without what is below the diagonal.
template <typename Out>
struct Destination {
  Out* data;
  int64_t stride;
  bool packed_upper = false;
  // Points so that [j] is column j.
  Out* Row(int64_t i) const { return data + i * stride - (packed_upper ? i * (i + 1) / 2 : 0); }
};

// Equal blocks rather than full ones and a rest; a multiple of the depth that packing turns at once.
int64_t BlockDepth(int64_t depth) {
  constexpr int64_t kMost = 192, kTurned = 16;
  if (depth <= kMost) return depth;
  return CeilDiv(CeilDiv(depth, CeilDiv(depth, kMost)), kTurned) * kTurned;
}

template <typename T>
auto MergeOf(const GemmKernels<T>& k, bool stores, const T*) {
  return stores ? k.store : k.merge;
}
auto MergeOf(const GemmKernels<float>& k, bool, const double*) { return k.merge_f64; }

struct Range {
  int64_t begin, end;
};

// Some blocks of the summed dimension at a time, packed in slivers of the kernel's width. A task adds all of them to
// its part of c while that lies in the second-level cache.
template <typename T, typename Out>
class BlockProduct {
 public:
  BlockProduct(const GemmSpec<T>& spec, Destination<Out> c, ThreadPool& threads, const GemmKernels<T>& kernels,
               int64_t block_depth, bool first_stores)
      : spec_(spec),
        c_(c),
        threads_(threads),
        kernels_(kernels),
        block_depth_(block_depth),
        packed_depth_(std::min(kBlocksAtOnce * block_depth, spec.depth)),
        first_stores_(first_stores),
        rows_(CeilDiv(spec.rows, kernels.rows) * kernels.rows),
        columns_(CeilDiv(spec.columns, kernels.columns) * kernels.columns),
        a_(rows_ * packed_depth_),
        b_(columns_ * packed_depth_) {}

  void Run() {
    for (int64_t begin = 0; begin < spec_.depth; begin += packed_depth_) {
      const int64_t end = std::min(begin + packed_depth_, spec_.depth);
      std::vector<Block> blocks;
      Range rows = {spec_.rows, 0}, columns = {spec_.columns, 0};
      for (int64_t at = begin; at < end; at += block_depth_) {
        const Block block = BlockAt(at, std::min(end, at + block_depth_), begin);
        if (block.rows.begin >= block.rows.end || block.columns.begin >= block.columns.end) continue;
        rows = {std::min(rows.begin, block.rows.begin), std::max(rows.end, block.rows.end)};
        columns = {std::min(columns.begin, block.columns.begin), std::max(columns.end, block.columns.end)};
        blocks.push_back(block);
      }
      if (blocks.empty()) continue;
      for (const Block& block : blocks) Pack(block, begin + block.at);
      Multiply(blocks, end - begin, rows, columns);
    }
  }

 private:
  struct Block {
    int64_t at, depth;    // in what is packed
    bool stores;          // c is not read
    Range rows, columns;  // in slivers: where the block is not known to be zero
  };

  Block BlockAt(int64_t begin, int64_t end, int64_t packed_from) const {
    Range rows = {0, spec_.rows}, columns = {0, spec_.columns};
    if (spec_.zeros == KnownZeros::kLeftUpper) rows.end = std::min(rows.end, end);
    if (spec_.zeros == KnownZeros::kRightUpper) columns.begin = begin;
    if (spec_.zeros == KnownZeros::kRightLower) columns.end = std::min(columns.end, end);
    return {begin - packed_from,
            end - begin,
            first_stores_ && begin == 0,
            {rows.begin / kernels_.rows, CeilDiv(rows.end, kernels_.rows)},
            {columns.begin / kernels_.columns, CeilDiv(columns.end, kernels_.columns)}};
  }

  // The slivers of a block lie together: a task reads few pages.
  T* PackedRows(const Block& block, int64_t line) { return a_.data() + block.at * rows_ + line * block.depth; }
  T* PackedColumns(const Block& block, int64_t line) { return b_.data() + block.at * columns_ + line * block.depth; }

  void Pack(const Block& block, int64_t begin) {
    const int64_t rows = block.rows.end - block.rows.begin, all = rows + block.columns.end - block.columns.begin;
    threads_.ParallelFor(all, CeilDiv(kLeastPacked, block.depth * kernels_.rows), [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        if (s < rows) {
          const int64_t line = (block.rows.begin + s) * kernels_.rows;
          kernels_.pack_rows(spec_.a.data + line * spec_.a.row_stride + begin * spec_.a.column_stride,
                             spec_.a.row_stride, spec_.a.column_stride,
                             static_cast<int>(std::min<int64_t>(kernels_.rows, spec_.rows - line)), block.depth,
                             PackedRows(block, line));
        } else {
          const int64_t line = (block.columns.begin + s - rows) * kernels_.columns;
          kernels_.pack_columns(spec_.b.data + line * spec_.b.column_stride + begin * spec_.b.row_stride,
                                spec_.b.column_stride, spec_.b.row_stride,
                                static_cast<int>(std::min<int64_t>(kernels_.columns, spec_.columns - line)),
                                block.depth, PackedColumns(block, line));
        }
      }
    });
  }

  void Multiply(const std::vector<Block>& blocks, int64_t depth, Range rows, Range columns) {
    const int64_t row_slivers = rows.end - rows.begin, column_slivers = columns.end - columns.begin;
    int64_t high = std::max<int64_t>(1, kTaskRows / kernels_.rows);
    int64_t wide = std::max<int64_t>(1, kTaskColumns / kernels_.columns);
    // Smaller tasks when there would be too few for the threads.
    const int64_t tile_work = depth * kernels_.rows * kernels_.columns;
    while (CeilDiv(row_slivers, high) * CeilDiv(column_slivers, wide) < 2 * threads_.size() &&
           high * wide * tile_work > 2 * kLeastTask) {
      (high >= wide ? high : wide) /= 2;
    }
    const int64_t down = CeilDiv(row_slivers, high), across = CeilDiv(column_slivers, wide);
    threads_.Run(down * across, [&](int64_t task, int) {
      const int64_t row = rows.begin + task / across * high, column = columns.begin + task % across * wide;
      const Range r = {row, std::min(rows.end, row + high)}, c = {column, std::min(columns.end, column + wide)};
      for (const Block& block : blocks) {
        const int64_t j_end = std::min(c.end, block.columns.end), i_end = std::min(r.end, block.rows.end);
        for (int64_t j = std::max(c.begin, block.columns.begin); j < j_end; ++j) {
          for (int64_t i = std::max(r.begin, block.rows.begin); i < i_end; ++i) MultiplyTile(block, i, j);
        }
      }
    });
  }

  void MultiplyTile(const Block& block, int64_t row_sliver, int64_t column_sliver) {
    const int64_t i0 = row_sliver * kernels_.rows, j0 = column_sliver * kernels_.columns;
    const int rows = static_cast<int>(std::min<int64_t>(kernels_.rows, spec_.rows - i0));
    const int columns = static_cast<int>(std::min<int64_t>(kernels_.columns, spec_.columns - j0));
    if (spec_.upper_only && j0 + columns <= i0) return;
    Out* row[kMostTileRows];
    int first[kMostTileRows];
    for (int r = 0; r < rows; ++r) {
      row[r] = c_.Row(i0 + r) + j0;
      first[r] = spec_.upper_only ? static_cast<int>(std::clamp<int64_t>(i0 + r - j0, 0, columns)) : 0;
      // The rows of c lie far apart: they come while the tile is summed.
      for (int j = first[r]; j < columns; j += static_cast<int>(64 / sizeof(Out))) __builtin_prefetch(row[r] + j, 1);
    }
    alignas(64) T tile[kMostTileElements];
    kernels_.tile(block.depth, PackedRows(block, i0), PackedColumns(block, j0), tile);
    MergeOf(kernels_, block.stores, static_cast<const Out*>(nullptr))(tile, kernels_.columns, rows, columns, first,
                                                                      spec_.sign, row);
  }

  const GemmSpec<T>& spec_;
  const Destination<Out> c_;
  ThreadPool& threads_;
  const GemmKernels<T>& kernels_;
  const int64_t block_depth_, packed_depth_;
  const bool first_stores_;
  const int64_t rows_, columns_;  // of whole slivers
  AlignedBuffer<T> a_, b_;
};

// Adds f32 sums over x's tokens to f64 ones; a is [M, N], b [M, K], the sums [N, K].
void AddTokens(const float* a, const float* b, int64_t M, int64_t N, int64_t K, bool symmetric, double* sums,
               ThreadPool& threads) {
  GemmSpec<float> spec;
  spec.rows = N;
  spec.columns = K;
  spec.depth = M;
  spec.a = {a, 1, N};
  spec.b = {b, K, 1};
  spec.accumulate = true;
  spec.upper_only = symmetric;
  BlockProduct<float, double>(spec, {sums, K, symmetric}, threads, HostGemmTier().f32, kGemmDepth,
                              /*first_stores=*/false)
      .Run();
}

}  // namespace

template <typename T>
void Gemm(const GemmSpec<T>& spec, T* c, int64_t stride, ThreadPool& threads, const GemmTier& tier) {
  if (spec.rows <= 0 || spec.columns <= 0) return;
  // Where every block reaches all of c the first one stores.
  const bool first_stores = !spec.accumulate && spec.zeros == KnownZeros::kNone && spec.depth > 0;
  if (!spec.accumulate && !first_stores) {
    threads.ParallelFor(spec.rows, CeilDiv(kLeastPacked, spec.columns), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = spec.upper_only ? std::min(i, spec.columns) : 0;
        std::fill(c + i * stride + first, c + i * stride + spec.columns, T{0});
      }
    });
  }
  if (spec.depth <= 0) return;
  BlockProduct<T, T>(spec, {c, stride}, threads, KernelsOf<T>(tier), BlockDepth(spec.depth), first_stores).Run();
}

template <typename T>
void MultiplyTransposed(const T* a, const T* b, int64_t M, int64_t N, int64_t K, T* c, ThreadPool& threads) {
  GemmSpec<T> spec;
  spec.rows = M;
  spec.columns = N;
  spec.depth = K;
  spec.a = {a, K, 1};
  spec.b = {b, 1, K};
  Gemm(spec, c, N, threads);
}

template void Gemm(const GemmSpec<float>&, float*, int64_t, ThreadPool&, const GemmTier&);
template void Gemm(const GemmSpec<double>&, double*, int64_t, ThreadPool&, const GemmTier&);
template void MultiplyTransposed(const float*, const float*, int64_t, int64_t, int64_t, float*, ThreadPool&);
template void MultiplyTransposed(const double*, const double*, int64_t, int64_t, int64_t, double*, ThreadPool&);

GramSum::GramSum(int64_t K) : K_(K), pending_(kGemmDepth * K), sums_(K * (K + 1) / 2) {}

void GramSum::Flush(const float* x, int64_t M, ThreadPool& threads) {
  AddTokens(x, x, M, K_, K_, true, sums_.data(), threads);
}

void GramSum::Add(const float* x, int64_t M, ThreadPool& threads) {
  tokens_ += M;
  if (pending_tokens_ > 0) {
    const int64_t taken = std::min(M, kGemmDepth - pending_tokens_);
    std::copy(x, x + taken * K_, pending_.data() + pending_tokens_ * K_);
    pending_tokens_ += taken;
    x += taken * K_;
    M -= taken;
    if (pending_tokens_ < kGemmDepth) return;
    Flush(pending_.data(), kGemmDepth, threads);
    pending_tokens_ = 0;
  }
  const int64_t whole = M / kGemmDepth * kGemmDepth;
  if (whole > 0) Flush(x, whole, threads);
  std::copy(x + whole * K_, x + M * K_, pending_.data());
  pending_tokens_ = M - whole;
}

template <typename T>
std::vector<T> GramSum::Matrix(ThreadPool& threads) {
  if (pending_tokens_ > 0) Flush(pending_.data(), pending_tokens_, threads);
  pending_tokens_ = 0;
  std::vector<T> out(K_ * K_);
  const Destination<double> sums = {sums_.data(), K_, true};
  threads.ParallelFor(K_, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < i; ++j) out[i * K_ + j] = static_cast<T>(sums.Row(j)[i]);
      for (int64_t j = i; j < K_; ++j) out[i * K_ + j] = static_cast<T>(sums.Row(i)[j]);
    }
  });
  return out;
}

template std::vector<float> GramSum::Matrix<float>(ThreadPool&);
template std::vector<double> GramSum::Matrix<double>(ThreadPool&);

ShiftSum::ShiftSum(int64_t K) : K_(K), pending_difference_(kGemmDepth * K), pending_(kGemmDepth * K), sums_(K * K) {}

void ShiftSum::Flush(const float* difference, const float* x, int64_t M, ThreadPool& threads) {
  AddTokens(difference, x, M, K_, K_, false, sums_.data(), threads);
}

void ShiftSum::Add(const float* x_full, const float* x, int64_t M, ThreadPool& threads) {
  while (M > 0) {
    const int64_t taken = std::min(M, kGemmDepth - pending_tokens_);
    float* difference = pending_difference_.data() + pending_tokens_ * K_;
    for (int64_t i = 0; i < taken * K_; ++i) difference[i] = x_full[i] - x[i];
    std::copy(x, x + taken * K_, pending_.data() + pending_tokens_ * K_);
    pending_tokens_ += taken;
    x_full += taken * K_;
    x += taken * K_;
    M -= taken;
    if (pending_tokens_ < kGemmDepth) return;
    Flush(pending_difference_.data(), pending_.data(), kGemmDepth, threads);
    pending_tokens_ = 0;
  }
}

template <typename T>
std::vector<T> ShiftSum::Matrix(ThreadPool& threads) {
  if (pending_tokens_ > 0) Flush(pending_difference_.data(), pending_.data(), pending_tokens_, threads);
  pending_tokens_ = 0;
  return std::vector<T>(sums_.begin(), sums_.end());
}

template std::vector<float> ShiftSum::Matrix<float>(ThreadPool&);
template std::vector<double> ShiftSum::Matrix<double>(ThreadPool&);

CrossSum::CrossSum(int64_t N, int64_t K)
    : N_(N), K_(K), pending_a_(kGemmDepth * N), pending_x_(kGemmDepth * K), sums_(N * K) {}

void CrossSum::Flush(ThreadPool& threads) {
  AddTokens(pending_a_.data(), pending_x_.data(), pending_tokens_, N_, K_, false, sums_.data(), threads);
  pending_tokens_ = 0;
}

void CrossSum::Add(const float* a, const float* x, int64_t M, ThreadPool& threads) {
  while (M > 0) {
    const int64_t taken = std::min(M, kGemmDepth - pending_tokens_);
    std::copy(a, a + taken * N_, pending_a_.data() + pending_tokens_ * N_);
    std::copy(x, x + taken * K_, pending_x_.data() + pending_tokens_ * K_);
    pending_tokens_ += taken;
    a += taken * N_;
    x += taken * K_;
    M -= taken;
    if (pending_tokens_ == kGemmDepth) Flush(threads);
  }
}

template <typename T>
std::vector<T> CrossSum::Matrix(ThreadPool& threads) {
  if (pending_tokens_ > 0) Flush(threads);
  return std::vector<T>(sums_.begin(), sums_.end());
}

template std::vector<float> CrossSum::Matrix<float>(ThreadPool&);
template std::vector<double> CrossSum::Matrix<double>(ThreadPool&);

}  // namespace sage
