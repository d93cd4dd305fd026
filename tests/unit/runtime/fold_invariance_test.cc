// Folding alone changes no output (quantization.md 5.3): every method that moves scales between layers, on the golden
// models, with weights that are kept as floats in place of being rounded.
#include <fstream>
#include <set>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact_shard.h"
#include "engine/runtime/layer_calibration.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/model_logits.h"

namespace sage::fold_invariance_test {
namespace {

// Stores what it is given, as f32.
absl::StatusOr<StoredLinear> KeepFloats(const TensorView& weight, const LinearSpec&, const LayerPlan&, ThreadPool&) {
  StoredLinear out;
  out.spec.strategy = "f32";
  out.N = weight.dim(0);
  out.K = weight.dim(1);
  SAGE_ASSIGN_OR_RETURN(Tensor kept, Tensor::Allocate(DType::kF32, weight.shape));
  std::memcpy(kept.as<float>(), weight.data, weight.bytes);
  out.owned.push_back(std::make_shared<Tensor>(std::move(kept)));
  out.tensors["weight"] = out.owned.back()->view();
  return out;
}

std::vector<std::vector<int32_t>> Samples(int64_t V) {
  std::vector<std::vector<int32_t>> out;
  for (int s = 0; s < 4; ++s) {
    out.emplace_back();
    for (int i = 0; i < 48; ++i) out.back().push_back(static_cast<int32_t>((31 * s + 7 * i * i + 3 * i) % V));
  }
  return out;
}

// The model of `from` with every fold of `method`, as an f32 folder at `to`; tells how many inputs were scaled.
absl::StatusOr<int> Fold(const std::string& from, const std::string& method, const std::string& to,
                         ThreadPool& threads) {
  CalibrationSpec spec;
  spec.model = from;
  spec.method = method;
  spec.group_size = -1;
  spec.dataset = to + ".jsonl";
  spec.output = to;
  SAGE_RETURN_IF_ERROR(WriteFileAtomic(spec.dataset, "[1, 2, 3]\n"));  // looked at by its name alone here
  SAGE_ASSIGN_OR_RETURN(CalibrationPlan plan, PlanCalibration(spec));
  LinearStrategyDef exact = *plan.strategy;
  exact.quantize = KeepFloats;
  plan.strategy = &exact;
  const auto samples = Samples(plan.source->config().V);
  const CancelToken cancel;
  CalibrationStreams streams;
  SAGE_ASSIGN_OR_RETURN(streams.quantized, LayerStream::Create(*plan.source, samples, threads, cancel, ""));
  if (plan.calibrator->compensates) {
    SAGE_ASSIGN_OR_RETURN(streams.full, LayerStream::Create(*plan.source, samples, threads, cancel, ""));
  }
  std::map<std::string, std::pair<Shape, std::vector<float>>> values;
  int folds = 0;
  for (int64_t shard = 0; shard < plan.source->shard_count(); ++shard) {
    SAGE_ASSIGN_OR_RETURN(const std::vector<NamedTensor> plain, plan.source->PlainValues(shard, threads));
    for (const NamedTensor& tensor : plain) {
      const float* p = tensor.view.as<float>();
      values[tensor.name] = {tensor.view.shape, {p, p + tensor.view.elements()}};
    }
    CalibratedLayer layer;
    if (shard + 1 < plan.source->shard_count()) {
      SAGE_ASSIGN_OR_RETURN(layer, CalibrateLayer(plan, streams, shard, threads));
    }
    for (const LinearSlot& slot : plan.source->ShardLinears(shard)) {
      LayerWeights::Linear* folded = slot.layer < 0 ? nullptr : layer.weights.Find(slot.kind);
      SAGE_ASSIGN_OR_RETURN(const Tensor own, plan.source->Weight(slot, threads));
      const float* p = folded == nullptr ? own.as<float>() : folded->weight.as<float>();
      if (slot.layer >= 0 || !plan.source->SharesEmbeddings(slot)) {
        values[slot.name + ".weight"] = {{slot.N, slot.K}, {p, p + slot.N * slot.K}};
      }
      if (folded != nullptr && !folded->bias.empty()) values[slot.name + ".bias"] = {{slot.N}, folded->bias};
    }
    for (const auto& [name, floats] : layer.plain) {
      values[name] = {{static_cast<int64_t>(floats.size())}, floats};
    }
    for (const auto& [module, how] : layer.folded_by) folds += how != "none";
  }
  std::vector<NamedTensor> tensors;
  for (const auto& [name, value] : values) {
    SAGE_ASSIGN_OR_RETURN(NamedTensor tensor, ConvertFloats(name, value.second.data(), value.first, DType::kF32));
    tensors.push_back(std::move(tensor));
  }
  SAGE_RETURN_IF_ERROR(MakeDirectories(to));
  std::filesystem::copy(from + "/config.json", to + "/config.json");
  SAGE_RETURN_IF_ERROR(WriteShard(to, "model.safetensors", std::move(tensors)).status());
  return folds;
}

TEST(FoldInvariance, ChangesNoLogitOfTheGoldenModels) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  ThreadPool threads(2);
  // One head a kv head, grouped queries with tied embeddings, biases of q, k, v, biases everywhere.
  for (const char* model : {"01-llama2-mha", "02-llama-gqa-tied", "08-qwen2-tied", "14-llama-bias-v5-config"}) {
    const ScratchFolder scratch;
    const std::string exact = scratch / "f32";  // norms and biases are not rounded after a fold
    ASSERT_TRUE(ConvertArtifact({GoldenModel(model), "f32", exact, {}}, threads, {}, nullptr).ok()) << model;
    const auto want = LogitsOf(exact);
    ASSERT_TRUE(want.ok()) << want.status();
    for (const char* method : {"awq", "smoothquant", "awq+gptq"}) {
      SCOPED_TRACE(std::string(model) + " " + method);
      const std::string to = scratch / method;
      const auto folds = Fold(exact, method, to, threads);
      ASSERT_TRUE(folds.ok()) << folds.status();
      EXPECT_GT(*folds, 0);
      const auto got = LogitsOf(to);
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_LT(Apart(*want, *got), 1e-4);
    }
  }
}

}  // namespace
}  // namespace sage::fold_invariance_test
