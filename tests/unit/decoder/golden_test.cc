// Every architecture against transformers: logits within 1e-3 at every position, and the same greedy ids.
#include <cmath>
#include <fstream>
#include <numeric>

#include "engine/base/cpu_features.h"
#include "engine/decoder/decoder.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"

namespace sage {
namespace {

constexpr double kTolerance = 1e-3;

class GoldenModel {
 public:
  explicit GoldenModel(const std::string& name, const std::string& kv = "f32", int64_t pages = 16) : threads_(2) {
    auto backend = OpenBackend("cpu");
    EXPECT_TRUE(backend.ok()) << backend.status();
    backend_ = std::move(*backend);
    auto checkpoint = OpenCheckpoint(GoldenFolder() + "/models/" + name);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    CancelToken cancel;
    auto decoder = Decoder::Load(*checkpoint, DecoderLoadSpec{}, *backend_, threads_, cancel, nullptr);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = std::move(*decoder);
    auto arena = KvArena::Allocate(kv, decoder_->kv_layout(16), decoder_->config().L, pages, *backend_);
    EXPECT_TRUE(arena.ok()) << arena.status();
    kv_ = std::move(*arena);
    // Pages out of order: the page table must be obeyed.
    pages_.resize(static_cast<size_t>(pages));
    std::iota(pages_.rbegin(), pages_.rend(), 0);
  }

  // Logits [rows, V] of `ids` put at positions from `context` on.
  std::vector<float> Run(const std::vector<int32_t>& ids, int64_t context, int64_t prompt_length) {
    const int64_t M = static_cast<int64_t>(ids.size());
    const DecoderConfig& c = decoder_->config();
    std::vector<int64_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    const SequenceSlice slice[] = {
        {.row_begin = 0, .rows = M, .context = context, .prompt_length = prompt_length, .pages = pages_.data()}};
    std::vector<float> hidden(ids.size() * static_cast<size_t>(c.hidden));
    std::vector<float> logits(ids.size() * static_cast<size_t>(c.V));
    StepContext ctx;
    ActivationCache cache;
    ctx.threads = &threads_;
    ctx.activations = &cache;
    const absl::Status status = decoder_->Forward(ctx, {ids, slice, rows}, *kv_, hidden.data());
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(decoder_->Logits(ctx, hidden.data(), M, logits.data()).ok());
    return logits;
  }
  int64_t V() const { return decoder_->config().V; }

 private:
  ThreadPool threads_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvArena> kv_;
  std::vector<int32_t> pages_;
};

double MaxDifference(const float* a, const float* b, size_t n) {
  double most = 0;
  for (size_t i = 0; i < n; ++i) most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
  return most;
}

int32_t ArgMax(const float* row, int64_t V) { return static_cast<int32_t>(std::max_element(row, row + V) - row); }

class GoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, LogitsAndGreedyPath) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const GoldenTensors want(GoldenFolder() + "/expected/" + GetParam() + ".safetensors");
  for (const std::string prompt : {"short", "long", "cross"}) {
    if (!want.Has(prompt + ".ids")) continue;
    GoldenModel model(GetParam());
    const auto ids = want.Get<int32_t>(prompt + ".ids");
    const auto expected = want.Get<float>(prompt + ".logits");
    const int64_t S = static_cast<int64_t>(ids.size()), V = model.V();
    auto logits = model.Run(ids, 0, S);
    ASSERT_EQ(logits.size(), expected.size());
    EXPECT_LE(MaxDifference(logits.data(), expected.data(), expected.size()), kTolerance) << prompt;
    const auto greedy = want.Get<int32_t>(prompt + ".greedy_ids");
    const auto greedy_logits = want.Get<float>(prompt + ".greedy_logits");
    const float* row = logits.data() + (S - 1) * V;
    for (size_t t = 0; t < greedy.size(); ++t) {
      EXPECT_LE(MaxDifference(row, greedy_logits.data() + t * static_cast<size_t>(V), static_cast<size_t>(V)),
                kTolerance)
          << prompt << " step " << t;
      ASSERT_EQ(ArgMax(row, V), greedy[t]) << prompt << " step " << t;
      logits = model.Run({greedy[t]}, S + static_cast<int64_t>(t), S);
      row = logits.data();
    }
  }
}

// What arrives in one piece or in several must give the same bits: prefill may be cut anywhere.
TEST_P(GoldenTest, ChunkedPrefillIsBitIdentical) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const GoldenTensors want(GoldenFolder() + "/expected/" + GetParam() + ".safetensors");
  const auto ids = want.Get<int32_t>("long.ids");
  const int64_t S = static_cast<int64_t>(ids.size());
  for (const std::string kv : {"f32", "bf16"}) {
    GoldenModel whole(GetParam(), kv), parts(GetParam(), kv);
    const auto expected = whole.Run(ids, 0, S);
    std::vector<float> got;
    int64_t done = 0;
    for (const int64_t chunk : {1, 17, 30, 2, 46}) {
      const std::vector<int32_t> piece(ids.begin() + done, ids.begin() + done + chunk);
      const auto logits = parts.Run(piece, done, S);
      got.insert(got.end(), logits.begin(), logits.end());
      done += chunk;
    }
    ASSERT_EQ(done, S);
    EXPECT_EQ(MaxDifference(got.data(), expected.data(), expected.size()), 0.0) << kv;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         ::testing::Values("01-llama2-mha", "02-llama-gqa-tied", "03-llama3-rope",
                                           "04-llama-rope-linear", "05-llama-rope-dynamic", "06a-llama-yarn",
                                           "06b-llama-yarn-mscale", "06c-llama-yarn-attention-factor", "06d-qwen2-yarn",
                                           "07-mistral-swa", "08-qwen2-tied", "09-qwen3-qk-norm", "12-llama-sharded",
                                           "13-llama-fp16", "14-llama-bias-v5-config"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (c == '-') c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace sage
