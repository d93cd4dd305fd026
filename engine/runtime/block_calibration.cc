// Shapes, texts and starts for the training of a block.
#include "engine/runtime/block_calibration.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr std::pair<std::string_view, BlockLinear> kKinds[] = {
    {"q_proj", kBlockQ},       {"k_proj", kBlockK},   {"v_proj", kBlockV},      {"o_proj", kBlockO},
    {"gate_proj", kBlockGate}, {"up_proj", kBlockUp}, {"down_proj", kBlockDown}};

GridWeight StartOf(const LayerPlan& plan) {
  GridWeight out = {plan.codes, plan.scale, plan.zero, plan.g_idx};
  if (out.zero.empty()) out.zero.assign(out.scale.size(), 0.0f);
  return out;
}

}  // namespace

BlockShape BlockShapeOf(const DecoderConfig& config, int64_t layer) {
  BlockShape out;
  out.hidden = config.hidden;
  out.ffn = config.ffn;
  out.H = config.H;
  out.KH = config.KH;
  out.D = config.D;
  out.window = config.window[static_cast<size_t>(layer)];
  out.norm_eps = static_cast<float>(config.norm_eps);
  out.qk_norm = config.qk_norm;
  return out;
}

absl::StatusOr<TrainedLayer> TrainSolvedLayer(const CalibrationPlan& plan, const CalibrationStreams& streams,
                                              int64_t layer, const LayerWeights& w,
                                              const std::map<std::string, SolvedLinear, std::less<>>& solved,
                                              ThreadPool& threads) {
  TrainedBlock block;
  block.shape = BlockShapeOf(plan.source->config(), layer);
  const std::string prefix = absl::StrCat("model.layers.", layer);
  for (const auto& [kind, place] : kKinds) {
    const LayerWeights::Linear& linear = *w.Find(kind);
    block.weights.weight[place] = linear.weight.as<float>();
    block.weights.bias[place] = linear.bias.empty() ? nullptr : linear.bias.data();
    const auto at = solved.find(kind);
    if (at == solved.end()) continue;
    const LinearChoice choice =
        plan.ChoiceOf(absl::StrCat(prefix, place <= kBlockO ? ".self_attn." : ".mlp.", std::string(kind)));
    TrainedLinear& trained = block.linears[place];
    trained.trains = true;
    trained.grid = GridOf(choice.linear, *choice.strategy);
    trained.weight = at->second.weight.as<float>();
    trained.codes = StartOf(at->second.plan);
    block.shape.byte_inputs[place] = choice.strategy->activation_bits == 8;
  }
  const std::vector<float>* norms[] = {&w.input_norm, &w.post_norm, &w.q_norm, &w.k_norm};
  for (size_t i = 0; i < kBlockNorms; ++i) {
    block.weights.norm[i] = norms[i]->empty() ? nullptr : norms[i]->data();
    block.norm_dtype[i] = plan.source->float_dtype();
  }
  BlockTexts texts;
  const std::vector<int64_t> lengths = streams.quantized->Lengths();
  texts.lengths = lengths;
  texts.x = streams.quantized->Kept();
  texts.wanted = streams.full->Hidden(0);
  texts.rope = [&](int64_t length, float* cos, float* sin) { streams.quantized->FillRope(length, cos, sin); };
  absl::StatusOr<BlockTrainingResult> result =
      TrainBlock(texts, *plan.calibrator->training, streams.quantized->cancel(), threads, &block);
  if (!result.ok()) return Annotate(result.status(), prefix);
  TrainedLayer out;
  out.result = *result;
  for (const auto& [kind, place] : kKinds) {
    if (!block.linears[place].trains) continue;
    const LinearChoice choice =
        plan.ChoiceOf(absl::StrCat(prefix, place <= kBlockO ? ".self_attn." : ".mlp.", std::string(kind)));
    out.plans[std::string(kind)] = PlanOf(std::move(block.linears[place].codes), choice.linear.symmetric);
  }
  out.norms.input_norm = std::move(block.norms[kInputNorm]);
  out.norms.post_norm = std::move(block.norms[kPostNorm]);
  out.norms.q_norm = std::move(block.norms[kQNorm]);
  out.norms.k_norm = std::move(block.norms[kKNorm]);
  return out;
}

}  // namespace sage
