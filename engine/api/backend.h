// A device: memory, and the arithmetic that strategies and models use. Plug-ins: engine/backends/<name>/backend.cc.
//
// Pointers to values are device pointers of the backend (host memory for "cpu"): what a step needs is put there by
// memory() before, what it gives is fetched after. Operators only enqueue; nothing waits but Download. Every operator
// gives each row the same bits whatever else is in the batch and however many threads run: sums have a fixed order that
// depends on K and position only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/device_memory.h"
#include "engine/api/linear_spec.h"
#include "engine/api/step_context.h"

namespace sage {

// A linear layer ready to run: out[m, n] = sum_k x[m, k] * w[n, k] + bias[n].
class BoundLinear {
 public:
  virtual ~BoundLinear() = default;
  // x: [M, K] f32; out: [M, N] f32 with row stride `out_stride`.
  virtual void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const = 0;
  virtual int64_t N() const = 0;
  virtual int64_t K() const = 0;
  virtual size_t weight_bytes() const = 0;  // bytes a decode step reads
  virtual std::string kernel() const = 0;   // "linear_int4_w4a16_avx512"
  // Host memory that Forward streams once from its beginning to its end; none for kernels of a device.
  virtual ReadAhead::Matrix streamed() const { return {}; }
};

struct KernelRefusal {
  std::string kernel;
  std::string reason;
};
// The answer of kernel selection: one kernel, or none and every refusal.
struct KernelChoice {
  std::string kernel;  // empty when none accepts
  std::vector<KernelRefusal> refused;
};

enum class Priority { kLatency, kThroughput, kMemory };

// The kernel key: (strategy, backend, device capability, group size, priority). The capability is the backend's own.
struct LinearKernelQuery {
  std::string strategy;
  int64_t N = 0, K = 0;     // 0 = any
  int64_t group_size = -1;  // -1 = per channel
  bool symmetric = true;
  Priority priority = Priority::kLatency;
  std::string kernel;  // when set, only this kernel may answer
};

// Calibrated scales of the K or the V of one layer: x = (code - zero) * scale.
struct KvScales {
  std::vector<float> scale;  // [1] for all, [KH] by head, [KH * D] by channel
  std::vector<float> zero;   // [KH * D] signed, with channel scales only; empty = 0
};
struct KvLayerScales {
  KvScales k, v;
};

// One KV page holds `page_tokens` positions of one layer; how its bytes are laid out belongs to the KV strategy's
// kernel.
struct KvLayout {
  int KH = 0;  // kv heads
  int D = 0;   // head size
  int page_tokens = 16;
  int H = 0;  // query heads that will attend; 0 = not said
  // The first pages of each sequence whose positions keep 16 bits under an 8-bit strategy. Such a page takes two of the
  // page table, one for its K and one for its V, so that all pages have one size; see KvPageIndex.
  int sink_pages = 0;
  std::shared_ptr<const KvLayerScales> scales = nullptr;  // null: scales come from the data
};

// Where page `i` of a sequence stands in its page table, and how many entries `pages` pages need.
constexpr int64_t KvPageIndex(int64_t i, int64_t sink_pages) { return i < sink_pages ? 2 * i : i + sink_pages; }
constexpr int64_t KvPageEntries(int64_t pages, int64_t sink_pages) {
  return pages + (pages < sink_pages ? pages : sink_pages);
}

// The rows of one sequence in a step: positions [context, context + rows) whose K/V are stored before attention runs.
struct SequenceSlice {
  int64_t row_begin = 0;  // first row of q, k, v in the batch
  int64_t rows = 0;
  int64_t context = 0;  // positions already in the cache
  // Length of the sequence's prompt. Dynamic rope reads it: positions below it were given at once and share the base of
  // that length, each later position has its own (so chunked prefill and recomputation change nothing).
  int64_t prompt_length = 0;
  // Page table: page of position p is pages[KvPageIndex(p / page_tokens, sink_pages)].
  const int32_t* pages = nullptr;
};

// The sequences of an operator, on the host, and where the backend put them for its kernels (Backend::Place); without
// that a device places them for the call.
struct StepSequences {
  StepSequences(absl::Span<const SequenceSlice> all) : slices(all) {}
  StepSequences(const std::vector<SequenceSlice>& all) : slices(all) {}
  template <size_t kCount>
  StepSequences(const SequenceSlice (&all)[kCount]) : slices(all) {}
  StepSequences() = default;
  absl::Span<const SequenceSlice> slices;
  const void* placed = nullptr;
};

struct AttentionArgs {
  int H = 0;  // query heads; H % KH == 0
  KvLayout layout;
  float scale = 1.0f;        // multiplies q.k
  int64_t window = 0;        // sliding window W: keys j with i - W < j <= i; 0 = all
  const float* q = nullptr;  // [M, H * D]
  int64_t q_stride = 0;
  float* out = nullptr;  // [M, H * D]
  int64_t out_stride = 0;
  StepSequences sequences;
};

// Reads and writes the KV pages of one layer. `arena` is the layer's memory: page p begins at arena + p * page_bytes().
class KvKernel {
 public:
  virtual ~KvKernel() = default;
  virtual size_t page_bytes() const = 0;
  // k, v: [M, KH * D] f32 rows of the batch (row strides given); stores each sequence's rows at its new positions.
  virtual void Store(StepContext& ctx, uint8_t* arena, const float* k, int64_t k_stride, const float* v,
                     int64_t v_stride, const StepSequences& sequences) const = 0;
  virtual void Attend(StepContext& ctx, const uint8_t* arena, const AttentionArgs& args) const = 0;
  // One stored position as f32 on the host (tests, drift reports): k, v [KH * D].
  virtual void Load(const uint8_t* arena, int32_t page, int slot, float* k, float* v) const = 0;
  virtual std::string kernel() const = 0;
};

// Elementwise operators; M rows, contiguous unless a stride is given.
struct Kernels {
  // y[m] = x[m] * rsqrt(mean(x[m]^2) + eps) * weight; x and y may be the same.
  void (*rms_norm)(StepContext&, const float* x, int64_t x_stride, const float* weight, float eps, int64_t M, int64_t K,
                   float* y, int64_t y_stride);
  // The same over each of `heads` slices of D within a row (q/k norm), in place.
  void (*head_norm)(StepContext&, float* x, int64_t stride, int heads, int64_t D, const float* weight, float eps,
                    int64_t M);
  // x += y.
  void (*add)(StepContext&, float* x, const float* y, int64_t count);
  // out[m, f] = silu(gate[m, f]) * up[m, f].
  void (*silu_mul)(StepContext&, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t M,
                   int64_t F, float* out);
  // Rotates heads in place with the row's own table: cos, sin [M, D / 2]. Pairs (i, i + D/2), or (2i, 2i + 1) when
  // interleaved.
  void (*rope)(StepContext&, float* x, int64_t stride, int heads, int64_t D, const float* cos, const float* sin,
               bool interleaved, int64_t M);
  // x += y, then out = rms_norm(x): rows of K without gaps, in one pass.
  void (*add_rms_norm)(StepContext&, float* x, const float* y, const float* weight, float eps, int64_t M, int64_t K,
                       float* out);
};

// Rows of a table [V, K] as f32: token embeddings in the memory of a device.
class BoundRows {
 public:
  virtual ~BoundRows() = default;
  // ids: [M] on the device, each in [0, V).
  virtual void Gather(StepContext& ctx, const int32_t* ids, int64_t M, float* out) const = 0;
  virtual size_t table_bytes() const = 0;
};

// Steps with equal keys enqueue the same operators on the same memory.
struct StepKey {
  bool repeats = false;  // steps like this come again and again: worth recording
  int64_t M = 0;
  const void* memory = nullptr;  // the KV arena
  bool operator<(const StepKey& other) const { return M != other.M ? M < other.M : memory < other.memory; }
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual std::string capability() const = 0;  // "avx512_vnni", "sm_90a"
  virtual const Kernels& kernels() const = 0;

  virtual KernelChoice SelectLinear(const LinearKernelQuery& query) const = 0;
  // UNIMPLEMENTED with reason NO_KERNEL and every refusal in the message when no kernel accepts.
  virtual absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery& query, LinearWeight weight,
                                                                  ThreadPool& threads) const = 0;
  // `kv_strategy` is a plug-in name.
  virtual absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view kv_strategy,
                                                           const KvLayout& layout) const = 0;
  // Names of every kernel this backend has, usable on this machine or not.
  virtual std::vector<std::string> ListKernels() const = 0;

  // What follows has a meaning for backends with memory of their own.
  virtual DeviceMemory& memory() const { return HostMemory(); }
  // A table whose rows are gathered on the device, or null: rows are then made on the host and uploaded.
  virtual absl::StatusOr<std::unique_ptr<BoundRows>> BindRows(const LinearWeight& table) const { return nullptr; }
  // Puts the sequences of a step and their page tables where the operators that follow find them. `set` tells apart the
  // lists of one step (0 or 1); the next Place of a set replaces it.
  virtual absl::StatusOr<StepSequences> Place(int set, absl::Span<const SequenceSlice> sequences,
                                              const KvLayout& layout) const {
    return StepSequences(sequences);
  }
  // How many rows a step of M decoding sequences runs with: devices round up so that few recordings serve all.
  virtual int64_t StepRows(int64_t M) const { return M; }
  // Runs `enqueue`, which calls operators and nothing else, or replays what it enqueued under the same key.
  virtual absl::Status RunStep(const StepKey& key, absl::FunctionRef<void()> enqueue) const {
    enqueue();
    return absl::OkStatus();
  }
};

struct BackendDef {
  std::string_view name;
  std::string_view summary;
  // The device, or UNAVAILABLE naming what is missing.
  absl::StatusOr<std::unique_ptr<Backend>> (*open)();
};

absl::Span<const BackendDef* const> Backends();
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(std::string_view name);  // NOT_FOUND lists the names

}  // namespace sage
