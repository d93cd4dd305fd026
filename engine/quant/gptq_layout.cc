// GPTQ words from codes and back, in tiles of outputs that share cache lines of the file.
#include "engine/quant/gptq_layout.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/packing.h"

namespace sage {
namespace {

// Words of one output that are gathered before they are taken apart: a multiple of 3 for 3-bit codes.
constexpr int64_t kBatchWords = 48;
constexpr int64_t kTileRows = 16;

}  // namespace

absl::Status CheckGptqShape(int bits, int64_t N, int64_t K) {
  if (!IsGptqBits(bits)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BITS_NOT_SUPPORTED",
                     absl::StrCat("gptq: bits must be 2, 3, 4 or 8, got ", bits));
  }
  const int64_t unit = GptqUnit(bits);
  if (N >= 1 && K >= 1 && N % unit == 0 && K % unit == 0) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "SIZE_NOT_WHOLE_WORDS",
                   absl::StrCat("gptq: ", bits, "-bit codes fill whole words only when N and K are multiples of ", unit,
                                ", got N=", N, ", K=", K),
                   {{"N", absl::StrCat(N)}, {"K", absl::StrCat(K)}, {"multiple", absl::StrCat(unit)}});
}

void PackGptqCodes(const uint8_t* codes, int64_t N, int64_t K, int bits, uint32_t* qweight) {
  const int64_t words = PackedWords(K, bits);
  std::vector<uint32_t> row(static_cast<size_t>(words));
  for (int64_t n = 0; n < N; ++n) {
    PackCodes(codes + n * K, K, bits, row.data());
    for (int64_t w = 0; w < words; ++w) qweight[w * N + n] = row[static_cast<size_t>(w)];
  }
}

void UnpackGptqCodes(const void* qweight, int64_t N, int64_t K, int bits, int64_t n_begin, int64_t n_end,
                     uint8_t* codes) {
  const auto* bytes = static_cast<const uint8_t*>(qweight);
  const int64_t words = PackedWords(K, bits);
  uint32_t gathered[kTileRows][kBatchWords];
  for (int64_t tile = n_begin; tile < n_end; tile += kTileRows) {
    const int64_t rows = std::min(kTileRows, n_end - tile);
    for (int64_t first = 0; first < words; first += kBatchWords) {
      const int64_t count = std::min(kBatchWords, words - first);
      for (int64_t w = 0; w < count; ++w) {
        for (int64_t r = 0; r < rows; ++r) std::memcpy(&gathered[r][w], bytes + ((first + w) * N + tile + r) * 4, 4);
      }
      for (int64_t r = 0; r < rows; ++r) {
        UnpackCodes(gathered[r], count * 32 / bits, bits, codes + (tile - n_begin + r) * K + first * 32 / bits);
      }
    }
  }
}

absl::Status PackGptqZeros(const uint8_t* zeros, int64_t N, int64_t G, int bits, GptqZeros version, uint32_t* qzeros) {
  std::vector<uint8_t> row(static_cast<size_t>(N));
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t n = 0; n < N; ++n) {
      const uint8_t zero = zeros[n * G + g];
      if (version == GptqZeros::kV1 && zero == 0) {
        return MakeError(absl::StatusCode::kInvalidArgument, "UNSAFE_ZERO",
                         absl::StrCat("gptq: zeros of checkpoint_format gptq must be 1 .. ", (1 << bits) - 1,
                                      ", got 0 at output ", n, ", group ", g, "; write gptq_v2"));
      }
      row[static_cast<size_t>(n)] = version == GptqZeros::kV1 ? static_cast<uint8_t>(zero - 1) : zero;
    }
    PackCodes(row.data(), N, bits, qzeros + g * PackedWords(N, bits));
  }
  return absl::OkStatus();
}

void UnpackGptqZeros(const void* qzeros, int64_t N, int64_t G, int bits, GptqZeros version, uint8_t* zeros) {
  const auto* bytes = static_cast<const uint8_t*>(qzeros);
  const int mask = (1 << bits) - 1, add = version == GptqZeros::kV1 ? 1 : 0;
  std::vector<uint8_t> row(static_cast<size_t>(N));
  for (int64_t g = 0; g < G; ++g) {
    UnpackCodes(bytes + g * PackedWords(N, bits) * 4, N, bits, row.data());
    for (int64_t n = 0; n < N; ++n) zeros[n * G + g] = static_cast<uint8_t>((row[static_cast<size_t>(n)] + add) & mask);
  }
}

}  // namespace sage
