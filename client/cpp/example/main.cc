// Prints a completion: sagequant_example HOST:PORT ENGINE PROMPT.
#include <cstdio>

#include "sagequant/client.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s HOST:PORT ENGINE PROMPT\n", argv[0]);
    return 2;
  }
  sage::client::Options options;
  options.server = argv[1];
  sage::client::Error error;
  const auto client = sage::client::Client::Connect(options, &error);
  if (client == nullptr) {
    std::fprintf(stderr, "%s: %s\n", error.reason.c_str(), error.message.c_str());
    return 1;
  }
  sage::quant::v1::GenerateRequest request;
  request.set_engine_id(argv[2]);
  request.set_text(argv[3]);
  request.mutable_options()->set_max_tokens(16);
  request.mutable_options()->mutable_sampling()->set_temperature(0);
  const auto failure = client->Generate(request, [](const sage::quant::v1::GenerationUpdate& update) {
    std::fputs(update.text().c_str(), stdout);
    return true;
  });
  std::puts("");
  if (!failure) return 0;
  std::fprintf(stderr, "%s %s: %s\n", failure->code.c_str(), failure->reason.c_str(), failure->message.c_str());
  return 1;
}
