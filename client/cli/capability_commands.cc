// sage quant capabilities: every plug-in of the server, or those that fit what is asked, each with the kernel it would
// get.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/capability_filter.h"
#include "client/cli/command.h"
#include "sage/quant/v1/quantization.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

std::string TextOf(const Json& object, const char* key) {
  return object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : "";
}

template <typename Plugins>
Json PluginsJson(const Plugins& plugins) {
  Json out = Json::array();
  for (const auto& p : plugins) out.push_back(Json{{"name", p.name()}, {"summary", p.summary()}});
  return out;
}

Json CapabilitiesJson(const v1::ListCapabilitiesResponse& all) {
  Json out = {{"linear_strategies", PluginsJson(all.linear_strategies())},
              {"kv_strategies", PluginsJson(all.kv_strategies())},
              {"calibrators", PluginsJson(all.calibrators())},
              {"checkpoint_formats", PluginsJson(all.checkpoint_formats())},
              {"models", PluginsJson(all.models())},
              {"backends", PluginsJson(all.backends())},
              {"version", all.version()},
              {"threads", all.threads()}};
  for (int i = 0; i < all.linear_strategies_size(); ++i) {
    const v1::LinearStrategyInfo& s = all.linear_strategies(i);
    out["linear_strategies"][i].update(Json{{"weight_dtype", s.weight_dtype()},
                                            {"weight_bits", s.weight_bits()},
                                            {"activation_bits", s.activation_bits()},
                                            {"quantizes", s.quantizes()}});
  }
  for (int i = 0; i < all.kv_strategies_size(); ++i) out["kv_strategies"][i]["bits"] = all.kv_strategies(i).bits();
  for (int i = 0; i < all.calibrators_size(); ++i) {
    out["calibrators"][i]["needs_activations"] = all.calibrators(i).needs_activations();
  }
  for (int i = 0; i < all.backends_size(); ++i) {
    const v1::BackendInfo& b = all.backends(i);
    const std::vector<std::string> kernels(b.kernels().begin(), b.kernels().end());
    out["backends"][i].update(Json{
        {"available", b.available()}, {"capability", b.capability()}, {"reason", b.reason()}, {"kernels", kernels}});
  }
  return out;
}

// Asks for the kernel of every strategy that is left; those without one move to "refused" with the reason.
std::optional<Failure> AddKernels(Context& context, const CapabilityFilter& filter, Json* all) {
  auto stub = v1::QuantizationService::NewStub(context.session->channel());
  Json kept = Json::array();
  (*all)["refused"] = Json::array();
  for (Json& strategy : (*all)["linear_strategies"]) {
    v1::SelectKernelRequest request = filter.kernel;
    request.set_weight_dtype(TextOf(strategy, "name"));
    request.clear_activation_dtype();
    Session::Call call(*context.session);
    v1::SelectKernelResponse answer;
    const grpc::Status status = stub->SelectKernel(call.get(), request, &answer);
    if (status.ok()) {
      strategy["kernel"] = answer.kernel();
      strategy["kernel_backend"] = answer.backend();
      kept.push_back(strategy);
      continue;
    }
    const Failure failure = context.session->ToFailure(status);
    if (failure.exit_code != kFailed) return failure;
    (*all)["refused"].push_back(
        Json{{"strategy", strategy["name"]}, {"reason", failure.reason}, {"message", failure.message}});
  }
  (*all)["linear_strategies"] = std::move(kept);
  return std::nullopt;
}

void PrintCapabilities(const Json& all) {
  for (const auto& [list, plugins] : all.items()) {
    if (!plugins.is_array() || (list == "refused" && plugins.empty())) continue;
    std::printf("%s\n", list.c_str());
    for (const Json& plugin : plugins) {
      if (list == "refused") {
        std::printf("  %-24s %s\n", TextOf(plugin, "strategy").c_str(), TextOf(plugin, "message").c_str());
        continue;
      }
      const bool missing = plugin.contains("available") && !plugin.value("available", false);
      const std::string kernel = TextOf(plugin, "kernel");
      std::printf("  %-24s %s%s%s\n", TextOf(plugin, "name").c_str(), TextOf(plugin, "summary").c_str(),
                  missing ? (" (not here: " + TextOf(plugin, "reason") + ")").c_str() : "",
                  kernel.empty() ? "" : (" [" + kernel + "]").c_str());
    }
  }
}

std::optional<Failure> Capabilities(Context& context, const CapabilityFilter& filter) {
  auto stub = v1::QuantizationService::NewStub(context.session->channel());
  v1::ListCapabilitiesResponse answer;
  {
    Session::Call call(*context.session);
    const grpc::Status status = stub->ListCapabilities(call.get(), {}, &answer);
    if (!status.ok()) return context.session->ToFailure(status);
  }
  Json all = CapabilitiesJson(answer);
  if (filter.any) {
    if (auto failure = FilterCapabilities(filter, &all)) return failure;
    if (auto failure = AddKernels(context, filter, &all)) return failure;
  }
  if (context.options.json) {
    PrintJson(all);
  } else {
    PrintCapabilities(all);
  }
  return std::nullopt;
}

}  // namespace

void AddCapabilityCommand(CLI::App& quant, Context& context) {
  auto filter = std::make_shared<CapabilityFilter>();
  auto* command = quant.add_subcommand("capabilities", "Every plug-in of the server, or those that fit the flags");
  const auto text = [command, filter](const char* flag, const char* help, std::function<void(const std::string&)> set) {
    return command->add_option_function<std::string>(
        flag,
        [filter, set](const std::string& value) {
          filter->any = true;
          set(value);
        },
        help);
  };
  text("--weight-dtype", "int4, int8, fp8, nf4, ... or a strategy",
       [filter](const std::string& v) { filter->kernel.set_weight_dtype(v); });
  text("--activation-dtype", "bf16, int8, fp8 or composite: w8a16",
       [filter](const std::string& v) { filter->kernel.set_activation_dtype(v); });
  text("--backend", "cpu, cuda, ...", [filter](const std::string& v) { filter->kernel.set_backend(v); });
  text("--priority", "latency, throughput or memory: which kernel a strategy gets", [filter](const std::string& v) {
    filter->kernel.set_priority(v == "latency"      ? v1::PRIORITY_LATENCY
                                : v == "throughput" ? v1::PRIORITY_THROUGHPUT
                                                    : v1::PRIORITY_MEMORY);
  })->check(CLI::IsMember({"latency", "throughput", "memory"}));
  command->add_option_function<int32_t>(
      "--group-size",
      [filter](int32_t v) {
        filter->any = true;
        filter->kernel.set_group_size(v);
      },
      "Kernels for this group size; -1 = per channel");
  command->callback([filter, &context] { context.Run([&] { return Capabilities(context, *filter); }); });
}

}  // namespace sage::cli
