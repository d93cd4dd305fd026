// A decoder on a backend with memory of its own: prompts, decode steps padded to the rows of a recording and logits are
// those of the host, bit for bit. The device here is the CPU behind copies; where a CUDA device is, it is compared too.
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <numeric>

#include "engine/base/status.h"
#include "engine/decoder/decoder.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

// Host memory that says it is not: whatever a step needs must have been uploaded.
class FarMemory final : public DeviceMemory {
 public:
  bool is_host() const override { return false; }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override {
    const auto data = std::make_shared<std::vector<uint64_t>>(bytes / 8 + 1);
    return DeviceBuffer(std::shared_ptr<void>(data, data->data()), bytes);
  }
  void Upload(void* to, const void* from, size_t bytes) override { Copy(to, from, bytes); }
  void Copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  absl::Status Download(void* to, const void* from, size_t bytes) override {
    ++downloads;
    Copy(to, from, bytes);
    return std::exchange(failure, absl::OkStatus());
  }
  void Wait() override {}
  int downloads = 0;
  absl::Status failure;
};

class FarRows final : public BoundRows {
 public:
  FarRows(const float* table, int64_t K) : table_(table), K_(K) {}
  void Gather(StepContext& ctx, const int32_t* ids, int64_t M, float* out) const override {
    for (int64_t m = 0; m < M; ++m) std::copy_n(table_ + ids[m] * K_, K_, out + m * K_);
  }
  size_t table_bytes() const override { return 0; }

 private:
  const float* table_;
  int64_t K_;
};

// The CPU's kernels, decode steps of 4 or 8 rows.
class FarBackend final : public Backend {
 public:
  explicit FarBackend(bool gathers) : cpu_(*OpenBackend("cpu")), gathers_(gathers) {}
  std::string_view name() const override { return "far"; }
  std::string capability() const override { return cpu_->capability(); }
  const Kernels& kernels() const override { return cpu_->kernels(); }
  KernelChoice SelectLinear(const LinearKernelQuery& query) const override { return cpu_->SelectLinear(query); }
  absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery& query, LinearWeight weight,
                                                          ThreadPool& threads) const override {
    return cpu_->BindLinear(query, std::move(weight), threads);
  }
  absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view strategy, const KvLayout& layout) const override {
    return cpu_->BindKv(strategy, layout);
  }
  std::vector<std::string> ListKernels() const override { return {}; }
  DeviceMemory& memory() const override { return memory_; }
  absl::StatusOr<std::unique_ptr<BoundRows>> BindRows(const LinearWeight& table) const override {
    if (!gathers_ || table.dense.values.dtype != DType::kF32) return nullptr;
    return std::make_unique<FarRows>(table.dense.values.as<float>(), table.K);
  }
  absl::StatusOr<StepSequences> Place(int set, absl::Span<const SequenceSlice> sequences,
                                      const KvLayout& layout) const override {
    placed_[set].assign(sequences.begin(), sequences.end());
    return StepSequences(placed_[set]);
  }
  int64_t StepRows(int64_t M) const override { return M <= 4 ? 4 : 8; }
  absl::Status RunStep(const StepKey& key, absl::FunctionRef<void()> enqueue) const override {
    keys.push_back(key);
    enqueue();
    return absl::OkStatus();
  }
  mutable FarMemory memory_;
  mutable std::vector<StepKey> keys;

 private:
  std::unique_ptr<Backend> cpu_;
  bool gathers_;
  mutable std::vector<SequenceSlice> placed_[2];
};

// Two prompts at once, of which the rows asked for are the last ones, then decode steps of two and three sequences.
class Story {
 public:
  Story(const Backend& backend, const std::string& strategy) : backend_(backend), threads_(2) {
    const auto checkpoint =
        OpenCheckpoint(std::string(SAGE_SOURCE_DIR) + "/tests/data/stories260K/tinyllamas-stories-260k-f32.gguf");
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    DecoderLoadSpec spec;
    spec.strategy = strategy;
    CancelToken cancel;
    auto decoder = Decoder::Load(*checkpoint, spec, backend, threads_, cancel, nullptr);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = std::move(*decoder);
    kv_ = *KvArena::Allocate("bf16", decoder_->kv_layout(16), decoder_->config().L, 64, backend);
    for (int s = 0; s < 3; ++s) {
      pages_[s].resize(8);
      std::iota(pages_[s].rbegin(), pages_[s].rend(), 8 * s);
    }
  }

  // Logits of the wanted rows; `hidden` says whether the rows pass through the caller.
  std::vector<float> Run(const std::vector<std::pair<int, std::vector<int32_t>>>& texts, bool hidden) {
    std::vector<int32_t> ids;
    std::vector<SequenceSlice> slices;
    std::vector<int64_t> rows;
    for (const auto& [sequence, text] : texts) {
      const auto begin = static_cast<int64_t>(ids.size()), count = static_cast<int64_t>(text.size());
      slices.push_back({begin, count, length_[sequence], length_[sequence] + count, pages_[sequence].data()});
      ids.insert(ids.end(), text.begin(), text.end());
      rows.push_back(begin + count - 1);
      length_[sequence] += count;
    }
    StepContext ctx;
    ctx.threads = &threads_;
    ctx.activations = &cache_;
    const auto count = static_cast<int64_t>(rows.size());
    std::vector<float> states(static_cast<size_t>(count * decoder_->config().hidden));
    std::vector<float> logits(static_cast<size_t>(count * decoder_->config().V));
    status_.Update(decoder_->Forward(ctx, {ids, slices, rows}, *kv_, hidden ? states.data() : nullptr));
    status_.Update(hidden ? decoder_->Logits(ctx, states.data(), count, logits.data())
                          : decoder_->StepLogits(ctx, 0, count, logits.data()));
    return logits;
  }
  std::vector<std::vector<float>> All(bool hidden) {
    std::vector<std::vector<float>> out;
    out.push_back(Run({{0, {1, 403, 407, 261, 378, 5, 9, 11, 20, 30}}, {1, {1, 9, 8, 7, 300, 301}}}, hidden));
    out.push_back(Run({{0, {12}}, {1, {13}}}, hidden));
    out.push_back(Run({{2, {1, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130}}, {0, {14}}}, hidden));
    for (int32_t i = 0; i < 4; ++i) out.push_back(Run({{1, {20 + i}}, {2, {30 + i}}, {0, {40 + i}}}, hidden));
    out.push_back(Run({{2, {17}}}, hidden));
    return out;
  }
  const absl::Status& status() const { return status_; }
  Decoder& decoder() { return *decoder_; }

 private:
  const Backend& backend_;
  ThreadPool threads_;
  ActivationCache cache_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvArena> kv_;
  std::vector<int32_t> pages_[3];
  int64_t length_[3] = {0, 0, 0};
  absl::Status status_;
};

TEST(DeviceMemory, ADecoderBehindCopiesGivesTheSameBits) {
  const auto cpu = OpenBackend("cpu");
  ASSERT_TRUE(cpu.ok());
  for (const std::string strategy : {"", "int8_w8a16"}) {
    const auto expected = Story(**cpu, strategy).All(true);
    for (const bool gathers : {false, true}) {
      for (const bool hidden : {false, true}) {
        const FarBackend far(gathers);
        Story story(far, strategy);
        const auto got = story.All(hidden);
        ASSERT_TRUE(story.status().ok()) << story.status();
        ASSERT_EQ(got.size(), expected.size());
        for (size_t i = 0; i < got.size(); ++i) {
          EXPECT_EQ(std::memcmp(got[i].data(), expected[i].data(), got[i].size() * sizeof(float)), 0)
              << "step " << i << " strategy '" << strategy << "' gathers " << gathers << " hidden " << hidden;
        }
        int64_t repeats = 0;
        for (const StepKey& key : far.keys) repeats += key.repeats && key.M == 4 ? 1 : 0;
        EXPECT_EQ(repeats, 6);  // the steps that only decode
      }
    }
    // The host keeps the rows of a step too.
    const auto kept = Story(**cpu, strategy).All(false);
    for (size_t i = 0; i < kept.size(); ++i) EXPECT_EQ(kept[i], expected[i]);
  }
}

TEST(DeviceMemory, AnErrorOfTheDeviceEndsTheStep) {
  const FarBackend far(true);
  Story story(far, "");
  far.memory_.failure = absl::InternalError("the device failed");
  story.Run({{0, {1, 2, 3}}}, true);
  EXPECT_EQ(story.status().message(), "the device failed");
}

TEST(DeviceMemory, ACudaDeviceAgreesWithTheHost) {
  const auto cuda = OpenBackend("cuda");
  if (!cuda.ok()) {
    std::cout << "cuda: device unavailable: " << cuda.status().message() << "\n";
    EXPECT_TRUE(absl::IsUnavailable(cuda.status()) || GetErrorReason(cuda.status()).reason == "BACKEND_ABSENT")
        << cuda.status();
    return;
  }
  const auto cpu = OpenBackend("cpu");
  for (const std::string strategy : {"", "bf16"}) {
    const auto expected = Story(**cpu, strategy).All(true);
    Story story(**cuda, strategy);
    const auto got = story.All(false);
    ASSERT_TRUE(story.status().ok()) << story.status();
    for (size_t i = 0; i < got.size(); ++i) {
      double error = 0, energy = 0;
      for (size_t j = 0; j < got[i].size(); ++j) {
        error += std::pow(got[i][j] - expected[i][j], 2);
        energy += std::pow(expected[i][j], 2);
      }
      EXPECT_FALSE(!(std::sqrt(error / energy) <= 2e-2)) << "step " << i << " strategy '" << strategy << "'";
    }
  }
}

}  // namespace
}  // namespace sage
