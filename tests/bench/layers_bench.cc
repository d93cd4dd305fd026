// How close the first layers of a quantized model stay to the unquantized ones on text that was not calibrated on,
// after each layer: a method's worth in a minute instead of a whole run.
//
//   layers_bench MODEL CALIBRATION_TEXT OTHER_TEXT LAYERS METHOD [key=value ...]
// Keys: bits group asymmetric samples length threads; of a method that trains: epochs batch code_rate scale_rate
// norm_rate checks.
#include <chrono>
#include <cstdio>
#include <ctime>
#include <map>
#include <string>

#include "engine/base/status.h"
#include "engine/runtime/calibration_samples.h"
#include "engine/runtime/dataset.h"
#include "engine/runtime/layer_calibration.h"

namespace sage {
namespace {

using Options = std::map<std::string, double>;

double Option(const Options& options, const std::string& key, double otherwise) {
  const auto at = options.find(key);
  return at == options.end() ? otherwise : at->second;
}

// Mean over tokens of |ours - theirs|^2 / |theirs|^2.
double Distance(const LayerStream& ours, const LayerStream& theirs, int64_t hidden) {
  double sum = 0;
  for (int64_t m = 0; m < ours.tokens(); ++m) {
    const float *a = ours.Hidden(m), *b = theirs.Hidden(m);
    double error = 0, size = 0;
    for (int64_t k = 0; k < hidden; ++k) {
      error += (static_cast<double>(a[k]) - b[k]) * (static_cast<double>(a[k]) - b[k]);
      size += static_cast<double>(b[k]) * b[k];
    }
    sum += error / size;
  }
  return sum / static_cast<double>(ours.tokens());
}

absl::StatusOr<std::vector<std::vector<int32_t>>> Samples(const CalibrationPlan& plan, const std::string& text,
                                                          int64_t count, int64_t length, uint64_t seed) {
  SAGE_ASSIGN_OR_RETURN(const Dataset dataset, ReadDataset(text, ""));
  SAGE_ASSIGN_OR_RETURN(const TokenizerFiles files, LoadTokenizer(plan.source->checkpoint().path()));
  return ChooseSamples(dataset, &files, count, length, seed);
}

absl::Status Run(const std::vector<std::string>& words, const Options& options) {
  CalibrationSpec spec;
  spec.model = words[0];
  spec.dataset = words[1];
  spec.method = words[4];
  spec.weight_dtype = "int" + std::to_string(static_cast<int>(Option(options, "bits", 4)));
  spec.group_size = static_cast<int>(Option(options, "group", 64));
  spec.asymmetric = Option(options, "asymmetric", 1) != 0;
  spec.samples = static_cast<int>(Option(options, "samples", 32));
  spec.sequence_length = static_cast<int>(Option(options, "length", 512));
  spec.output = "unused";
  SAGE_ASSIGN_OR_RETURN(CalibrationPlan plan, PlanCalibration(spec));
  CalibratorDef method = *plan.calibrator;
  BlockTrainingOptions training;
  if (method.training != nullptr) {
    training = *method.training;
    training.epochs = static_cast<int>(Option(options, "epochs", training.epochs));
    training.checks = static_cast<int>(Option(options, "checks", training.checks));
    training.batch_tokens = static_cast<int64_t>(Option(options, "batch", 1.0 * training.batch_tokens));
    training.code_rate = Option(options, "code_rate", training.code_rate);
    training.scale_rate = Option(options, "scale_rate", training.scale_rate);
    training.norm_rate = Option(options, "norm_rate", training.norm_rate);
    method.training = &training;
  }
  plan.calibrator = &method;
  ThreadPool threads(static_cast<int>(Option(options, "threads", 2)));
  const CancelToken cancel;
  SAGE_ASSIGN_OR_RETURN(auto texts, Samples(plan, words[1], spec.samples, spec.sequence_length, spec.seed));
  SAGE_ASSIGN_OR_RETURN(auto others, Samples(plan, words[2], 16, 512, 5));
  CalibrationStreams streams;
  SAGE_ASSIGN_OR_RETURN(streams.quantized, LayerStream::Create(*plan.source, texts, threads, cancel));
  if (method.compensates) {
    SAGE_ASSIGN_OR_RETURN(streams.full, LayerStream::Create(*plan.source, texts, threads, cancel));
  }
  SAGE_ASSIGN_OR_RETURN(auto ours, LayerStream::Create(*plan.source, others, threads, cancel));
  SAGE_ASSIGN_OR_RETURN(auto theirs, LayerStream::Create(*plan.source, others, threads, cancel));
  const int64_t hidden = plan.source->config().hidden;
  for (int64_t layer = 0; layer < std::stoll(words[3]); ++layer) {
    const auto begin = std::chrono::steady_clock::now();
    const std::clock_t cpu = std::clock();
    SAGE_ASSIGN_OR_RETURN(const CalibratedLayer done, CalibrateLayer(plan, streams, layer, threads));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const double cpu_seconds = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
    SAGE_RETURN_IF_ERROR(ours->Run(done.weights, layer));
    SAGE_ASSIGN_OR_RETURN(const LayerWeights source, LoadLayerWeights(*plan.source, layer, threads));
    SAGE_RETURN_IF_ERROR(theirs->Run(source, layer));
    std::printf("%s layer %lld: %.1f s, %.1f CPU s; other text %.6f", spec.method.c_str(),
                static_cast<long long>(layer), seconds, cpu_seconds, Distance(*ours, *theirs, hidden));
    if (streams.full != nullptr) {
      std::printf(", calibrated on %.6f", Distance(*streams.quantized, *streams.full, hidden));
    }
    if (done.training.has_value()) {
      std::printf(", held out %.6f -> %.6f at step %d of %d", done.training->start_loss, done.training->loss,
                  done.training->best_step, done.training->steps);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace sage

int main(int argc, char** argv) {
  std::vector<std::string> words;
  sage::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      words.push_back(word);
    } else {
      options[word.substr(0, equals)] = std::stod(word.substr(equals + 1));
    }
  }
  if (words.size() != 5) {
    std::fprintf(stderr, "usage: layers_bench MODEL CALIBRATION_TEXT OTHER_TEXT LAYERS METHOD [key=value ...]\n");
    return 2;
  }
  const absl::Status status = sage::Run(words, options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
