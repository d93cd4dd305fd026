// The order of work within a layer: q, k, v, then o, then gate and up, then down.
//
// Folding. A scale s on an input multiplies the columns of the linears that read it and is taken from whatever made the
// input: a norm's weight (q, k, v and gate, up), v's rows (o) or up's rows (down). A mapping is used only when every
// linear it touches is quantized, so that all consumers of a value are compensated. Norms are kept in the model's
// dtype: the norm is rounded first and the columns take the exact quotient of the old and the new norm, so that folding
// changes no output beyond f32 rounding. Under grouped-query attention o's scales must agree over the query heads that
// share a kv head: they take the geometric mean, and only if that still lowers the error.
#include "engine/runtime/layer_calibration.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "engine/quant/integer_grid.h"
#include "engine/runtime/block_calibration.h"
#include "engine/runtime/layer_statistics.h"
#include "engine/solvers/activation_range.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/output_target.h"
#include "engine/solvers/scale_search.h"
#include "engine/tensor/float_convert.h"
#include "engine/tensor/safetensors_file.h"

namespace sage {
namespace {

// Shares of the mean diagonal that are tried in the least squares of compensated weights: from GPTQ's to one that moves
// weights along the strongest directions of the input only, which is all that a few thousand tokens can say.
constexpr double kTargetDamps[] = {0.01, 0.1, 1.0};

std::string ModuleName(int64_t layer, std::string_view kind) {
  const bool attention = kind == "q_proj" || kind == "k_proj" || kind == "v_proj" || kind == "o_proj";
  return absl::StrCat("model.layers.", layer, attention ? ".self_attn." : ".mlp.", std::string(kind));
}

std::string NormName(int64_t layer, bool input) {
  return absl::StrCat("model.layers.", layer, input ? ".input_layernorm.weight" : ".post_attention_layernorm.weight");
}

std::string HeadNormName(int64_t layer, std::string_view kind) {
  return absl::StrCat("model.layers.", layer, ".self_attn.", std::string(kind), ".weight");
}

// The linear layers that read an input.
absl::Span<const std::string_view> ReadersOf(LayerInput input) {
  static constexpr std::string_view kOfAttention[] = {"q_proj", "k_proj", "v_proj"}, kOfAttended[] = {"o_proj"},
                                    kOfMlp[] = {"gate_proj", "up_proj"}, kOfProduct[] = {"down_proj"};
  switch (input) {
    case LayerInput::kAttention:
      return kOfAttention;
    case LayerInput::kAttended:
      return kOfAttended;
    case LayerInput::kMlp:
      return kOfMlp;
    case LayerInput::kProduct:
      return kOfProduct;
  }
  return {};
}

class LayerWork {
 public:
  LayerWork(const CalibrationPlan& plan, CalibrationStreams& streams, int64_t layer, ThreadPool& threads)
      : plan_(plan),
        streams_(streams),
        stream_(*streams.quantized),
        full_{streams.full.get(), &source_},
        layer_(layer),
        threads_(threads) {}

  absl::StatusOr<CalibratedLayer> Run() {
    SAGE_ASSIGN_OR_RETURN(out_.weights, LoadLayerWeights(*plan_.source, layer_, threads_));
    if (full_.stream != nullptr) {
      SAGE_ASSIGN_OR_RETURN(source_, LoadLayerWeights(*plan_.source, layer_, threads_));
    }
    LayerWeights& w = out_.weights;
    const bool trains = plan_.calibrator->training != nullptr;
    if (trains) {
      SAGE_RETURN_IF_ERROR(stream_.Keep());
      const std::vector<int64_t> lengths = stream_.Lengths();
      const int64_t held = HeldOutTexts(*plan_.calibrator->training, static_cast<int64_t>(lengths.size()));
      solved_tokens_ = std::accumulate(lengths.begin(), lengths.end() - held, int64_t{0});
    }
    const bool folds = plan_.calibrator->choose_scales != nullptr;
    if (folds) SAGE_RETURN_IF_ERROR(FoldIntoNorm(&w.input_norm, LayerInput::kAttention));
    SAGE_RETURN_IF_ERROR(SolveBeside(LayerInput::kAttention, "v_proj", LayerInput::kAttended));
    SAGE_RETURN_IF_ERROR(RunAttention());
    SAGE_RETURN_IF_ERROR(Solve(LayerInput::kAttended));
    SAGE_RETURN_IF_ERROR(stream_.AddAttention(w));
    if (folds) SAGE_RETURN_IF_ERROR(FoldIntoNorm(&w.post_norm, LayerInput::kMlp));
    SAGE_RETURN_IF_ERROR(SolveBeside(LayerInput::kMlp, "up_proj", LayerInput::kProduct));
    SAGE_RETURN_IF_ERROR(Solve(LayerInput::kProduct));
    SAGE_RETURN_IF_ERROR(stream_.AddMlp(w));
    if (trains) SAGE_RETURN_IF_ERROR(Train());
    return std::move(out_);
  }

 private:
  // Attention of the layer as it will run; the static scales of what it caches are solved on the way.
  absl::Status RunAttention() {
    const KvCalibration& plan = plan_.kv;
    if (!plan.calibrates) return stream_.RunAttention(out_.weights, layer_);
    const DecoderConfig& c = plan_.source->config();
    KvStatistics statistics(plan, c.KH, c.D, threads_);
    absl::Status status = stream_.RunAttention(out_.weights, layer_, &statistics);
    if (!status.ok()) return Annotate(status, absl::StrCat("model.layers.", layer_, ".self_attn"));
    const DType dtype = plan.ScaleDType(plan_.source->float_dtype());
    absl::StatusOr<KvLayerScales> scales = statistics.Solve(dtype);
    if (!scales.ok()) return Annotate(scales.status(), absl::StrCat("model.layers.", layer_, ".self_attn"));
    SAGE_ASSIGN_OR_RETURN(out_.kv_scales, KvScaleTensors(plan, *scales, layer_, dtype));
    out_.kv = DescribeKvScales(*scales, layer_, statistics.absmax(true), statistics.absmax(false));
    return absl::OkStatus();
  }

  LayerWeights::Linear& Linear(std::string_view kind) { return *out_.weights.Find(kind); }
  bool Quantizes(std::string_view kind) const {
    LinearSlot slot;
    slot.name = ModuleName(layer_, kind);
    return plan_.Quantizes(slot);
  }

  absl::StatusOr<InputStatistics> Collect(LayerInput input, bool solving) {
    StatisticsRequest request;
    request.input = input;
    request.folded = &folded_[static_cast<size_t>(input)];
    request.halves = solving;
    request.most_tokens = solved_tokens_;
    absl::StatusOr<InputStatistics> out = CollectStatistics(stream_, out_.weights, full_, request, threads_);
    if (out.ok() && solving && plan_.gptq_correction) AddShift(*out);
    if (!out.ok()) return Annotate(out.status(), absl::StrCat("model.layers.", layer_));
    return out;
  }

  // GPTAQ's correction over all tokens. What is added to the hidden states has no shift of its own input: there the
  // least-squares weights stay.
  static void AddShift(InputStatistics& input) {
    if (input.halves[0].shift.empty()) return;
    input.shift = input.halves[0].shift;
    for (size_t i = 0; i < input.shift.size(); ++i) input.shift[i] += input.halves[1].shift[i];
  }

  // Solves the readers of `place`, whose outputs make the input `product`: that of the next linear, whose scales are
  // folded into the rows of `producer` before. What the unquantized stream says of `place` is collected first; then it
  // moves on, behind what is made of `product`.
  absl::Status SolveBeside(LayerInput place, std::string_view producer, LayerInput product) {
    const bool solves = QuantizesAny(place), attention = product == LayerInput::kAttended;
    const bool folds =
        plan_.calibrator->choose_scales != nullptr && Quantizes(producer) && Quantizes(ReadersOf(product)[0]);
    InputStatistics input, produced;
    if (full_.stream != nullptr) {
      if (solves) {
        SAGE_ASSIGN_OR_RETURN(input, Collect(place, true));
      }
      if (attention) SAGE_RETURN_IF_ERROR(full_.stream->RunAttention(source_, layer_));
      if (folds) {
        StatisticsRequest request;
        request.input = product;
        request.most_tokens = solved_tokens_;
        request.adds = true;
        SAGE_ASSIGN_OR_RETURN(produced, CollectStatistics(*full_.stream, source_, {}, request, threads_));
      } else {
        SAGE_RETURN_IF_ERROR(full_.stream->Add(product, source_, nullptr));
      }
    } else if (folds) {
      if (attention) SAGE_RETURN_IF_ERROR(stream_.RunAttention(out_.weights, layer_));
      SAGE_ASSIGN_OR_RETURN(produced, Collect(product, false));
    }
    if (folds) SAGE_RETURN_IF_ERROR(FoldIntoRows(producer, product, produced));
    if (!solves) return absl::OkStatus();
    if (full_.stream == nullptr) {
      SAGE_ASSIGN_OR_RETURN(input, Collect(place, true));
    }
    return SolveReaders(place, input);
  }

  absl::StatusOr<InputScales> ChooseScales(const InputStatistics& input, absl::Span<const std::string_view> kinds) {
    std::vector<TensorView> weights;
    for (const std::string_view kind : kinds) weights.push_back(Linear(kind).weight.view());
    const LinearChoice choice = plan_.ChoiceOf(ModuleName(layer_, kinds[0]));
    auto scales = plan_.calibrator->choose_scales({input, weights, choice.linear, *choice.strategy}, threads_);
    if (!scales.ok()) return Annotate(scales.status(), ModuleName(layer_, kinds[0]));
    return scales;
  }

  void MultiplyColumns(Tensor& weight, const std::vector<float>& scales) {
    const int64_t N = weight.shape()[0], K = weight.shape()[1];
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) weight.as<float>()[n * K + k] *= scales[static_cast<size_t>(k)];
    }
  }

  absl::Status FoldIntoNorm(std::vector<float>* norm, LayerInput place) {
    const absl::Span<const std::string_view> kinds = ReadersOf(place);
    for (const std::string_view kind : kinds) {
      if (!Quantizes(kind)) return absl::OkStatus();
    }
    const bool attention = place == LayerInput::kAttention;
    SAGE_ASSIGN_OR_RETURN(const InputStatistics input, Collect(place, false));
    SAGE_ASSIGN_OR_RETURN(InputScales chosen, ChooseScales(input, kinds));
    std::vector<float>& scales = chosen.values;
    for (size_t j = 0; j < norm->size(); ++j) {
      const float before = (*norm)[j], after = RoundToDType(before / scales[j], plan_.source->float_dtype());
      const float exact = before / after;
      const bool usable = std::isfinite(exact) && exact > 0 && std::isfinite(after);
      scales[j] = usable ? exact : 1.0f;
      if (usable) (*norm)[j] = after;
    }
    for (const std::string_view kind : kinds) {
      MultiplyColumns(Linear(kind).weight, scales);
      out_.notes[ModuleName(layer_, kind)] = attention ? "input_layernorm" : "post_attention_layernorm";
      out_.folded_by[ModuleName(layer_, kind)] = chosen.how;
    }
    out_.plain[NormName(layer_, attention)] = *norm;
    folded_[static_cast<size_t>(place)] = std::move(scales);
    return absl::OkStatus();
  }

  // Query heads that share a kv head read one row of v: their scales must be one.
  absl::Status ShareOverHeads(const InputStatistics& input, std::vector<float>* scales, std::string* how) {
    const DecoderConfig& c = plan_.source->config();
    const int64_t D = c.D, share = c.H / c.KH;
    if (share == 1) return absl::OkStatus();
    for (int64_t kv = 0; kv < c.KH; ++kv) {
      for (int64_t d = 0; d < D; ++d) {
        double log_sum = 0;
        for (int64_t r = 0; r < share; ++r) {
          log_sum += std::log(static_cast<double>((*scales)[static_cast<size_t>((kv * share + r) * D + d)]));
        }
        const float mean = static_cast<float>(std::exp(log_sum / static_cast<double>(share)));
        for (int64_t r = 0; r < share; ++r) (*scales)[static_cast<size_t>((kv * share + r) * D + d)] = mean;
      }
    }
    const TensorView weight = Linear("o_proj").weight.view();
    const int64_t N = weight.dim(0), K = weight.dim(1);
    const LinearChoice choice = plan_.ChoiceOf(ModuleName(layer_, "o_proj"));
    const GridSpec grid = GridOf(choice.linear, *choice.strategy);
    SAGE_ASSIGN_OR_RETURN(const auto scaled, FakeQuantize(FloatsOf(weight), N, K, *scales, grid, threads_));
    SAGE_ASSIGN_OR_RETURN(const auto plain, FakeQuantize(FloatsOf(weight), N, K, {}, grid, threads_));
    if (GramError(scaled, FloatsOf(weight), input.gram, N, K, threads_) >=
        GramError(plain, FloatsOf(weight), input.gram, N, K, threads_)) {
      scales->assign(scales->size(), 1.0f);
      *how = "none";
    }
    return absl::OkStatus();
  }

  // v -> o and up -> down: the producer's rows are divided.
  absl::Status FoldIntoRows(std::string_view producer, LayerInput place, const InputStatistics& input) {
    const std::string_view consumer = ReadersOf(place)[0];
    const bool attention = place == LayerInput::kAttended;
    SAGE_ASSIGN_OR_RETURN(InputScales chosen, ChooseScales(input, {&consumer, 1}));
    std::vector<float>& scales = chosen.values;
    if (attention) SAGE_RETURN_IF_ERROR(ShareOverHeads(input, &scales, &chosen.how));
    MultiplyColumns(Linear(consumer).weight, scales);
    LayerWeights::Linear& rows = Linear(producer);
    const DecoderConfig& c = plan_.source->config();
    const int64_t D = c.D, share = attention ? c.H / c.KH : 1, width = rows.weight.shape()[1];
    for (int64_t n = 0; n < rows.weight.shape()[0]; ++n) {
      const int64_t column = attention ? n / D * share * D + n % D : n;
      const float s = scales[static_cast<size_t>(column)];
      for (int64_t k = 0; k < width; ++k) rows.weight.as<float>()[n * width + k] /= s;
      if (rows.bias.empty()) continue;
      float& bias = rows.bias[static_cast<size_t>(n)];  // as it will be stored
      bias = RoundToDType(bias / s, plan_.source->float_dtype());
    }
    if (!rows.bias.empty()) out_.plain[ModuleName(layer_, producer) + ".bias"] = rows.bias;
    out_.notes[ModuleName(layer_, consumer)] = std::string(producer);
    out_.folded_by[ModuleName(layer_, consumer)] = chosen.how;
    folded_[static_cast<size_t>(place)] = std::move(scales);
    return absl::OkStatus();
  }

  bool QuantizesAny(LayerInput place) const {
    const absl::Span<const std::string_view> kinds = ReadersOf(place);
    return std::any_of(kinds.begin(), kinds.end(), [&](std::string_view kind) { return Quantizes(kind); });
  }

  absl::Status Solve(LayerInput place) {
    if (!QuantizesAny(place)) return absl::OkStatus();
    SAGE_ASSIGN_OR_RETURN(const InputStatistics input, Collect(place, true));
    return SolveReaders(place, input);
  }

  // The one scale of static activations; none (0) where they are dynamic.
  absl::StatusOr<StaticGrid> ObserveInput(LayerInput place) {
    StaticGrid grid;
    if (!plan_.static_activations) return grid;
    // An 8-bit float keeps its relative precision whatever the scale: cutting its range by error would gain nothing.
    const bool floats = plan_.strategy->weight_dtype == "fp8";
    RangeObserver range(floats ? RangeSpec{} : plan_.range);
    const int64_t K = Linear(ReadersOf(place)[0]).weight.shape()[1];
    SAGE_RETURN_IF_ERROR(
        stream_.Visit(place, out_.weights, [&](const float* x, int64_t M) { return range.Add(x, M * K); }));
    SAGE_ASSIGN_OR_RETURN(const ActivationRange found, range.Solve());
    const DType dtype = plan_.linear.scale_dtype;
    grid = GridOfRange(found, !plan_.activation_asymmetric, dtype);
    if (floats) grid.scale = FloatScaleOfRange(found, kMaxE4M3, dtype);
    return grid;
  }

  absl::Status SolveReaders(LayerInput place, const InputStatistics& input) {
    const absl::Span<const std::string_view> kinds = ReadersOf(place);
    SAGE_ASSIGN_OR_RETURN(const StaticGrid grid, ObserveInput(place));
    SAGE_RETURN_IF_ERROR(Compensate(kinds, input));
    for (const std::string_view kind : kinds) {
      if (!Quantizes(kind)) continue;
      const absl::Status status = SolveOne(kind, input, grid);
      if (!status.ok()) return Annotate(status, ModuleName(layer_, kind));
    }
    return absl::OkStatus();
  }

  // input_scale and input_zero_point of compressed-tensors.
  absl::Status AddStaticInput(const StaticGrid& grid, StoredLinear& stored) {
    const DType dtype = plan_.linear.scale_dtype;
    SAGE_ASSIGN_OR_RETURN(Tensor scale, Tensor::Allocate(dtype, {1}));
    if (dtype == DType::kF32) {
      *scale.as<float>() = grid.scale;
    } else {
      *scale.as<uint16_t>() = dtype == DType::kF16 ? FloatToF16(grid.scale) : FloatToBF16(grid.scale);
    }
    stored.owned.push_back(std::make_shared<Tensor>(std::move(scale)));
    stored.tensors["input_scale"] = stored.owned.back()->view();
    if (!plan_.activation_asymmetric) return absl::OkStatus();
    SAGE_ASSIGN_OR_RETURN(Tensor zero, Tensor::Allocate(DType::kI8, {1}));
    *zero.as<int8_t>() = static_cast<int8_t>(grid.zero);
    stored.owned.push_back(std::make_shared<Tensor>(std::move(zero)));
    stored.tensors["input_zero_point"] = stored.owned.back()->view();
    return absl::OkStatus();
  }

  // The weights that make up for what the quantized layers before these have changed, in place of their own.
  absl::Status Compensate(absl::Span<const std::string_view> kinds, const InputStatistics& input) {
    if (full_.stream == nullptr || !input.shift.empty()) return absl::OkStatus();  // a shift is the solver's own way
    std::vector<float> stack;                                                      // of the weights
    std::vector<std::string_view> stacked;
    std::vector<int64_t> rows;
    const int64_t K = input.K;
    for (const std::string_view kind : kinds) {
      if (!Quantizes(kind)) continue;
      const absl::Span<const float> weight = FloatsOf(Linear(kind).weight.view());
      stack.insert(stack.end(), weight.begin(), weight.end());
      stacked.push_back(kind);
      rows.push_back(static_cast<int64_t>(weight.size()) / K);
    }
    const int64_t N = static_cast<int64_t>(stack.size()) / K;
    std::array<std::vector<float>, 2> cross;  // [N, K] what the outputs lack, times x^T
    for (size_t i = 0; i < 2; ++i) {
      const InputStatistics::Half& half = input.halves[i];
      cross[i] = half.wanted;
      cross[i].resize(static_cast<size_t>(N * K));
      GemmSpec<float> product;  // what is wanted less what there is, or what W makes of the difference of the inputs
      product.rows = N;
      product.columns = product.depth = K;
      product.a = {stack.data(), K, 1};
      product.b = {half.wanted.empty() ? half.shift.data() : half.gram.data(), K, 1};
      product.sign = half.wanted.empty() ? 1.0f : -1.0f;
      product.accumulate = true;
      Gemm(product, cross[i].data(), K, threads_);
    }
    absl::StatusOr<TargetWeight> target = SolveOutputTarget(stack, rows, K, {input.halves[0].gram, cross[0]},
                                                            {input.halves[1].gram, cross[1]}, kTargetDamps, threads_);
    if (!target.ok()) return Annotate(target.status(), ModuleName(layer_, kinds[0]));
    const float* from = target->weight.data();
    for (size_t i = 0; i < stacked.size(); ++i) {
      std::copy_n(from, rows[i] * K, Linear(stacked[i]).weight.as<float>());
      from += rows[i] * K;
      out_.strength[ModuleName(layer_, stacked[i])] = target->strength[i];
    }
    return absl::OkStatus();
  }

  absl::Status SolveOne(std::string_view kind, const InputStatistics& input, const StaticGrid& grid) {
    const std::string name = ModuleName(layer_, kind);
    const LinearChoice choice = plan_.ChoiceOf(name);
    Tensor weight = std::move(Linear(kind).weight);
    SAGE_ASSIGN_OR_RETURN(LayerPlan layer_plan,
                          plan_.calibrator->solve(input, weight.view(), choice.Asked(), *choice.strategy, threads_));
    SAGE_RETURN_IF_ERROR(Store(kind, weight, layer_plan, grid));
    const Tensor& back = Linear(kind).weight;
    const int64_t N = weight.shape()[0], K = weight.shape()[1];
    const std::vector<float> zero(static_cast<size_t>(N * K));
    const double signal = GramError(FloatsOf(weight.view()), zero, input.gram, N, K, threads_);
    const double noise = GramError(FloatsOf(weight.view()), FloatsOf(back.view()), input.gram, N, K, threads_);
    out_.output_error[name] = signal > 0 ? std::sqrt(std::max(0.0, noise) / signal) : 0.0;
    if (plan_.calibrator->training != nullptr) {
      solved_[std::string(kind)] = {std::move(weight), std::move(layer_plan)};
    }
    return absl::OkStatus();
  }

  // `weight` on the plan's grid becomes the layer's weight.
  absl::Status Store(std::string_view kind, const Tensor& weight, const LayerPlan& layer_plan, const StaticGrid& grid) {
    const std::string name = ModuleName(layer_, kind);
    const LinearChoice choice = plan_.ChoiceOf(name);
    SAGE_ASSIGN_OR_RETURN(StoredLinear stored,
                          choice.strategy->quantize(weight.view(), choice.linear, layer_plan, threads_));
    if (grid.scale > 0) SAGE_RETURN_IF_ERROR(AddStaticInput(grid, stored));
    SAGE_ASSIGN_OR_RETURN(Tensor back, Dequantize(stored));
    out_.error[name] = RelativeError(weight, back, threads_);
    out_.stored[name] = std::make_shared<StoredLinear>(std::move(stored));
    Linear(kind).weight = std::move(back);
    return absl::OkStatus();
  }

  // Trains the block; where that is better on the held-out texts, the layer is stored anew and the stream runs through
  // it once more.
  absl::Status Train() {
    LayerWeights& w = out_.weights;
    SAGE_ASSIGN_OR_RETURN(TrainedLayer trained, TrainSolvedLayer(plan_, streams_, layer_, w, solved_, threads_));
    out_.training = trained.result;
    if (trained.result.best_step == 0) return absl::OkStatus();
    stream_.Rewind();
    TakeNorms(std::move(trained.norms));
    SAGE_RETURN_IF_ERROR(StoreTrained(LayerInput::kAttention, trained));
    SAGE_RETURN_IF_ERROR(RunAttention());
    SAGE_RETURN_IF_ERROR(StoreTrained(LayerInput::kAttended, trained));
    SAGE_RETURN_IF_ERROR(stream_.AddAttention(w));
    SAGE_RETURN_IF_ERROR(StoreTrained(LayerInput::kMlp, trained));
    SAGE_RETURN_IF_ERROR(StoreTrained(LayerInput::kProduct, trained));
    return stream_.AddMlp(w);
  }

  void TakeNorms(LayerWeights norms) {
    LayerWeights& w = out_.weights;
    out_.plain[NormName(layer_, true)] = w.input_norm = std::move(norms.input_norm);
    out_.plain[NormName(layer_, false)] = w.post_norm = std::move(norms.post_norm);
    if (w.q_norm.empty()) return;
    out_.plain[HeadNormName(layer_, "q_norm")] = w.q_norm = std::move(norms.q_norm);
    out_.plain[HeadNormName(layer_, "k_norm")] = w.k_norm = std::move(norms.k_norm);
  }

  absl::Status StoreTrained(LayerInput place, const TrainedLayer& trained) {
    SAGE_ASSIGN_OR_RETURN(const StaticGrid grid, ObserveInput(place));
    for (const std::string_view kind : ReadersOf(place)) {
      const auto solved = solved_.find(kind);
      if (solved == solved_.end()) continue;
      SAGE_RETURN_IF_ERROR(Store(kind, solved->second.weight, trained.plans.find(kind)->second, grid));
      out_.output_error.erase(ModuleName(layer_, kind));  // that of the weights before
    }
    return absl::OkStatus();
  }

  const CalibrationPlan& plan_;
  CalibrationStreams& streams_;
  LayerStream& stream_;
  LayerWeights source_;  // as the unquantized model computes
  FullStream full_;
  int64_t layer_;
  ThreadPool& threads_;
  int64_t solved_tokens_ = 0;                 // the texts held out for training are behind these; 0 = no training
  std::array<std::vector<float>, 4> folded_;  // by LayerInput: the scales its readers' columns took
  std::map<std::string, SolvedLinear, std::less<>> solved_;  // only for a calibrator that trains
  CalibratedLayer out_;
};

absl::Status ReadFloats(const std::map<std::string, TensorView>& tensors, const std::string& name,
                        std::vector<float>* out) {
  const auto it = tensors.find(name);
  if (it == tensors.end()) {
    return MakeError(absl::StatusCode::kDataLoss, "SHARD_INCOMPLETE", absl::StrCat(name, ": is not in its shard"));
  }
  out->resize(static_cast<size_t>(it->second.elements()));
  return ToFloat(it->second, out->data());
}

}  // namespace

double RelativeError(const Tensor& weight, const Tensor& dequantized, ThreadPool& threads) {
  const int64_t N = weight.shape()[0], K = weight.shape()[1];
  std::vector<double> difference(static_cast<size_t>(N)), norm(static_cast<size_t>(N));
  threads.ParallelFor(N, 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* w = weight.as<float>() + n * K;
      const float* d = dequantized.as<float>() + n * K;
      double a = 0, b = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double e = static_cast<double>(w[k]) - d[k];
        a += e * e;
        b += static_cast<double>(w[k]) * w[k];
      }
      difference[static_cast<size_t>(n)] = a;
      norm[static_cast<size_t>(n)] = b;
    }
  });
  double a = 0, b = 0;
  for (int64_t n = 0; n < N; ++n) {
    a += difference[static_cast<size_t>(n)];
    b += norm[static_cast<size_t>(n)];
  }
  return b > 0 ? std::sqrt(a / b) : (a > 0 ? 1.0 : 0.0);
}

absl::StatusOr<LayerWeights> LoadLayerWeights(const ArtifactSource& source, int64_t layer, ThreadPool& threads) {
  LayerWeights out;
  for (const LinearSlot& slot : source.ShardLinears(layer)) {
    LayerWeights::Linear* linear = out.Find(slot.kind);
    if (linear == nullptr) return absl::InternalError(absl::StrCat(slot.name, ": no place in a layer"));
    SAGE_ASSIGN_OR_RETURN(linear->weight, source.Weight(slot, threads));
    SAGE_ASSIGN_OR_RETURN(const NamedTensor bias, source.Bias(slot));
    if (bias.view.empty()) continue;
    linear->bias.resize(static_cast<size_t>(slot.N));
    SAGE_RETURN_IF_ERROR(ToFloat(bias.view, linear->bias.data()));
  }
  SAGE_ASSIGN_OR_RETURN(const std::vector<NamedTensor> plain, source.PlainValues(layer, threads));
  std::map<std::string, TensorView> tensors;
  for (const NamedTensor& tensor : plain) tensors[tensor.name] = tensor.view;
  SAGE_RETURN_IF_ERROR(ReadFloats(tensors, NormName(layer, true), &out.input_norm));
  SAGE_RETURN_IF_ERROR(ReadFloats(tensors, NormName(layer, false), &out.post_norm));
  if (source.config().qk_norm) {
    SAGE_RETURN_IF_ERROR(ReadFloats(tensors, HeadNormName(layer, "q_norm"), &out.q_norm));
    SAGE_RETURN_IF_ERROR(ReadFloats(tensors, HeadNormName(layer, "k_norm"), &out.k_norm));
  }
  return out;
}

absl::StatusOr<LayerWeights> ReadCalibratedLayer(const CalibrationPlan& plan, const std::string& shard_path,
                                                 int64_t layer, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(LayerWeights out, LoadLayerWeights(*plan.source, layer, threads));
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<SafetensorsFile> file, SafetensorsFile::Open(shard_path));
  const auto& tensors = file->tensors();
  SAGE_RETURN_IF_ERROR(ReadFloats(tensors, NormName(layer, true), &out.input_norm));
  SAGE_RETURN_IF_ERROR(ReadFloats(tensors, NormName(layer, false), &out.post_norm));
  if (!out.q_norm.empty()) {
    SAGE_RETURN_IF_ERROR(ReadFloats(tensors, HeadNormName(layer, "q_norm"), &out.q_norm));
    SAGE_RETURN_IF_ERROR(ReadFloats(tensors, HeadNormName(layer, "k_norm"), &out.k_norm));
  }
  for (const LinearSlot& slot : plan.source->ShardLinears(layer)) {
    LayerWeights::Linear* linear = out.Find(slot.kind);
    if (!linear->bias.empty()) SAGE_RETURN_IF_ERROR(ReadFloats(tensors, slot.name + ".bias", &linear->bias));
    if (!plan.Quantizes(slot)) continue;
    StoredLinear stored;
    stored.spec = plan.ChoiceOf(slot.name).linear;
    stored.N = slot.N;
    stored.K = slot.K;
    const std::string prefix = slot.name + ".";
    for (auto it = tensors.lower_bound(prefix); it != tensors.end() && it->first.compare(0, prefix.size(), prefix) == 0;
         ++it) {
      if (it->first != prefix + "bias") stored.tensors[it->first.substr(prefix.size())] = it->second;
    }
    SAGE_ASSIGN_OR_RETURN(linear->weight, Dequantize(stored));
  }
  return out;
}

absl::StatusOr<CalibratedLayer> CalibrateLayer(const CalibrationPlan& plan, CalibrationStreams& streams, int64_t layer,
                                               ThreadPool& threads) {
  return LayerWork(plan, streams, layer, threads).Run();
}

}  // namespace sage
