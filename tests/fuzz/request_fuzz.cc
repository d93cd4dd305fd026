// Fuzzes request messages: the protobuf bytes of every request that carries options, OpenAI bodies, and the JSON that
// starts an engine.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "sage/quant/v1/engine.pb.h"
#include "sage/quant/v1/generation.pb.h"
#include "sage/quant/v1/quantization.pb.h"
#include "sage/quant/v1/report.pb.h"
#include "server/convert.h"
#include "server/http/openai_request.h"
#include "server/start_request.h"

namespace {

using sage::server::ModelPaths;

const ModelPaths& Paths() {
  static const ModelPaths paths = [] {
    std::string folder = "/tmp/sage-request-fuzz-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) std::abort();
    auto made = ModelPaths::Create(folder, {folder});
    if (!made.ok()) std::abort();
    return *std::move(made);
  }();
  return paths;
}

template <typename Message, typename Convert>
void Try(const uint8_t* data, size_t size, const Convert& convert) {
  Message message;
  if (message.ParseFromArray(data, static_cast<int>(size))) (void)convert(message).ok();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace pb = sage::quant::v1;
  namespace server = sage::server;
  if (size < 1) return 0;
  const uint8_t* body = data + 1;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 9) {
    case 0:
      Try<pb::GenerationOptions>(body, size - 1, [](const auto& m) { return server::ToGenerateSpec(m); });
      Try<pb::GenerationOptions>(body, size - 1, [](const auto& m) { return server::ToStreamInterval(m); });
      break;
    case 1:
      Try<pb::Conversation>(body, size - 1, [](const auto& m) { return server::ToChatContext(m); });
      break;
    case 2:
      Try<pb::CalibrateRequest>(body, size - 1, [](const auto& m) { return server::ToCalibrationSpec(m, Paths()); });
      break;
    case 3:
      Try<pb::ConvertRequest>(body, size - 1, [](const auto& m) { return server::ToConvertSpec(m, Paths()); });
      break;
    case 4:
      Try<pb::EvaluateRequest>(body, size - 1, [](const auto& m) { return server::ToReportSpec(m, Paths()); });
      break;
    case 5:
      Try<pb::StartEngineRequest>(body, size - 1, [](const auto& m) { return server::ToEngineSpec(m, Paths()); });
      break;
    case 8:
      (void)server::ParseStartRequest(text, {}).ok();
      break;
    default:
      (void)server::ParseOpenAiRequest(text, data[0] % 9 == 6).ok();
  }
  return 0;
}
