// Hands out runs of chunks of huge pages; a chunk goes back when its last run does.
#include "engine/backends/cpu/weight_memory.h"

#include <limits>
#include <mutex>
#include <utility>

#include "engine/base/status.h"
#include "engine/tensor/tensor.h"

namespace sage::cpu {
namespace {

// Large enough that the pages at its end matter little, small enough that a model takes a few.
constexpr size_t kChunkBytes = size_t{32} << 20;

// Untouched pages of a chunk cost nothing. Runs are never used again one by one: engines bind and free all their layers
// together.
struct Chunk {
  Tensor memory;  // on huge pages
  size_t used = 0;
};

struct OpenChunk {
  std::mutex mutex;
  std::weak_ptr<Chunk> chunk;  // the one that small runs are taken from
};

OpenChunk& Open() {
  static OpenChunk* const open = new OpenChunk;
  return *open;
}

absl::StatusOr<std::shared_ptr<Chunk>> NewChunk(size_t bytes) {
  auto chunk = std::make_shared<Chunk>();
  SAGE_ASSIGN_OR_RETURN(chunk->memory, Tensor::Allocate(DType::kU8, {static_cast<int64_t>(bytes)}));
  return chunk;
}

}  // namespace

absl::StatusOr<WeightMemory> WeightMemory::Allocate(size_t bytes) {
  if (bytes > static_cast<size_t>(std::numeric_limits<int64_t>::max() / 2)) {
    return MakeError(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
                     "weights: more bytes than can be addressed");
  }
  const size_t padded = (bytes + 127) / 64 * 64;
  std::shared_ptr<Chunk> chunk;
  size_t at = 0;
  if (padded >= kChunkBytes / 4) {
    SAGE_ASSIGN_OR_RETURN(chunk, NewChunk(padded));
  } else {
    OpenChunk& open = Open();
    const std::lock_guard<std::mutex> lock(open.mutex);
    chunk = open.chunk.lock();
    if (chunk == nullptr || chunk->used + padded > kChunkBytes) {
      SAGE_ASSIGN_OR_RETURN(chunk, NewChunk(kChunkBytes));
      open.chunk = chunk;
    }
    at = std::exchange(chunk->used, chunk->used + padded);
  }
  uint8_t* const begin = chunk->memory.as<uint8_t>() + at;
  return WeightMemory(std::shared_ptr<uint8_t>(std::move(chunk), begin), bytes);
}

}  // namespace sage::cpu
