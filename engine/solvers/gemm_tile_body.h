// The kernels of one tier; gemm_kernels.cc includes this once a tier, inside the tier's namespace, with
// SAGE_LANE_TARGET set to the attribute of the tier. No include guard, for that reason.
//
// Every result element is its own chain of fused multiply-adds in index order, so the tile's shape and the vector's
// width never change a bit.

// tile[kTileRows, kTileVectors * kLanes] = sum over depth of a[d, row] * b[d, column]; a and b are packed.
template <typename V>
SAGE_LANE_TARGET void Tile(int64_t depth, const typename V::T* a, const typename V::T* b, typename V::T* tile) {
  typename V::R sum[V::kTileRows][V::kTileVectors];
#pragma GCC unroll 12
  for (int r = 0; r < V::kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V::kTileVectors; ++v) sum[r][v] = V::Zero();
  }
  for (int64_t d = 0; d < depth; ++d) {
    typename V::R column[V::kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < V::kTileVectors; ++v) column[v] = V::Load(b + v * V::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < V::kTileRows; ++r) {
      const typename V::R row = V::Broadcast(a + r);
#pragma GCC unroll 2
      for (int v = 0; v < V::kTileVectors; ++v) sum[r][v] = V::Fma(row, column[v], sum[r][v]);
    }
    a += V::kTileRows;
    b += V::kTileVectors * V::kLanes;
  }
#pragma GCC unroll 12
  for (int r = 0; r < V::kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V::kTileVectors; ++v) V::Store(tile + (r * V::kTileVectors + v) * V::kLanes, sum[r][v]);
  }
}

// row[r][j] += sign * tile[r, j] for first[r] <= j < columns; sign is 1 or -1, so the product is exact and fusing it
// changes nothing. With kStores what row[r][j] held is not read.
template <typename V, bool kStores>
SAGE_LANE_TARGET void Merge(const typename V::T* tile, int width, int rows, int columns, const int* first,
                            typename V::T sign, typename V::T* const* row) {
  const typename V::R factor = V::Broadcast(&sign);
  for (int r = 0; r < rows; ++r) {
    typename V::T* __restrict out = row[r];
    const typename V::T* __restrict in = tile + static_cast<int64_t>(r) * width;
    if (columns == V::kTileVectors * V::kLanes && first[r] == 0) {
#pragma GCC unroll 2
      for (int v = 0; v < V::kTileVectors * V::kLanes; v += V::kLanes) {
        V::Store(out + v, V::Fma(factor, V::Load(in + v), kStores ? V::Zero() : V::Load(out + v)));
      }
      continue;
    }
    for (int j = first[r]; j < columns; ++j) out[j] = (kStores ? typename V::T{0} : out[j]) + sign * in[j];
  }
}

// The same into sums of another type.
template <typename T, typename Out>
SAGE_LANE_TARGET void MergeInto(const T* tile, int width, int rows, int columns, const int* first, T sign,
                                Out* const* row) {
  for (int r = 0; r < rows; ++r) {
    Out* __restrict out = row[r];
    const T* __restrict in = tile + static_cast<int64_t>(r) * width;
    for (int j = first[r]; j < columns; ++j) out[j] += static_cast<Out>(sign * in[j]);
  }
}

// y[i] = y[i] + a * x[i], rounded once.
template <typename V>
SAGE_LANE_TARGET void AddScaled(int64_t count, typename V::T a, const typename V::T* x, typename V::T* y) {
  const typename V::R factor = V::Broadcast(&a);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::Store(y + i, V::Fma(factor, V::Load(x + i), V::Load(y + i)));
  for (; i < count; ++i) y[i] = std::fma(a, x[i], y[i]);
}
