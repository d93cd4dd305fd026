// Settings of the daemon: one table of keys serves flags, environment and YAML alike.
#include "server/config.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "yaml-cpp/yaml.h"

extern char** environ;

namespace sage::server {
namespace {

using Setter = std::function<absl::Status(DaemonConfig&, const std::string&)>;
struct Key {
  std::string name;  // "data-dir"
  std::string help;
  Setter set;
  bool repeatable = false;
  bool flag = false;  // a switch on the command line
};

absl::Status Bad(const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG", message);
}

Setter Text(std::string DaemonConfig::*member, std::vector<std::string> allowed = {}) {
  return [=](DaemonConfig& config, const std::string& value) {
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
      return Bad(absl::StrCat("must be one of ", absl::StrJoin(allowed, ", "), ", got \"", value, "\""));
    }
    config.*member = value;
    return absl::OkStatus();
  };
}

Setter Integer(int DaemonConfig::*member, int low, int high) {
  return [=](DaemonConfig& config, const std::string& value) {
    int number = 0;
    if (!absl::SimpleAtoi(value, &number) || number < low || number > high) {
      return Bad(absl::StrCat("must be a whole number from ", low, " to ", high, ", got \"", value, "\""));
    }
    config.*member = number;
    return absl::OkStatus();
  };
}

// "30", "30s", "500ms", "2m".
Setter Seconds(double DaemonConfig::*member, double high) {
  return [=](DaemonConfig& config, const std::string& value) {
    double number = 0, scale = 1;
    std::string digits = value;
    if (digits.size() > 2 && digits.substr(digits.size() - 2) == "ms") {
      digits.resize(digits.size() - 2);
      scale = 0.001;
    } else if (!digits.empty() && (digits.back() == 's' || digits.back() == 'm')) {
      scale = digits.back() == 'm' ? 60 : 1;
      digits.pop_back();
    }
    if (!absl::SimpleAtod(digits, &number) || !(number * scale >= 0) || number * scale > high) {
      return Bad(absl::StrCat("must be a duration from 0 to ", high, " s, got \"", value, "\""));
    }
    config.*member = number * scale;
    return absl::OkStatus();
  };
}

Setter Boolean(bool DaemonConfig::*member) {
  return [=](DaemonConfig& config, const std::string& value) {
    bool on = false;
    if (!absl::SimpleAtob(value, &on)) return Bad(absl::StrCat("must be true or false, got \"", value, "\""));
    config.*member = on;
    return absl::OkStatus();
  };
}

Setter Listen(ListenAddress DaemonConfig::*member, bool unix_allowed) {
  return [=](DaemonConfig& config, const std::string& value) -> absl::Status {
    SAGE_ASSIGN_OR_RETURN(ListenAddress address, ParseListenAddress(value));
    if (!address.unix_path.empty() && !unix_allowed) return Bad("must be HOST:PORT, got a unix socket");
    config.*member = address;
    return absl::OkStatus();
  };
}

Setter AppendRoot() {
  return [](DaemonConfig& config, const std::string& value) {
    if (!value.empty()) config.model_roots.push_back(value);
    return absl::OkStatus();
  };
}

const std::vector<Key>& Keys() {
  using C = DaemonConfig;
  static const auto* keys = new std::vector<Key>{
      {"data-dir", "Folder of artifacts, operations and reports", Text(&C::data_dir)},
      {"model-root", "Folder below which models and datasets may be named", AppendRoot(), /*repeatable=*/true},
      {"grpc-listen", "HOST:PORT or unix:PATH of the gRPC port; port 0 picks one", Listen(&C::grpc_listen, true)},
      {"http-listen", "HOST:PORT of the HTTP port", Listen(&C::http_listen, false)},
      {"threads", "Compute threads, 0 = what affinity and control group allow", Integer(&C::threads, 0, 1024)},
      {"port-file", "JSON file written once ready: grpc, http, pid", Text(&C::port_file)},
      {"tls-cert", "PEM certificate chain for gRPC", Text(&C::tls_cert)},
      {"tls-key", "PEM private key", Text(&C::tls_key)},
      {"tls-client-ca", "PEM of authorities whose client certificates are required", Text(&C::tls_client_ca)},
      {"http-tls", "Serve HTTP with the same certificate", Boolean(&C::http_tls), false, true},
      {"token-file", "File of bearer tokens, one a line: TOKEN [read|generate|admin] [name=N] [rate=N] [burst=N]",
       Text(&C::token_file)},
      {"audit-log", "File that gets a line for every mutation (else the log does)", Text(&C::audit_log)},
      {"engines-file", "JSON array of engines to start before the daemon is ready", Text(&C::engines_file)},
      {"otlp-endpoint", "http://HOST[:PORT] of an OpenTelemetry collector that gets the spans",
       Text(&C::otlp_endpoint)},
      {"open-metrics", "Serve /metrics without a token", Boolean(&C::open_metrics), false, true},
      {"log-format", "json or text", Text(&C::log_format, {"json", "text"})},
      {"log-level", "debug, info, warn or error", Text(&C::log_level, {"debug", "info", "warn", "error"})},
      {"drain-delay", "Seconds between readiness dropping and the stop", Seconds(&C::drain_delay_seconds, 3600)},
      {"drain-timeout", "Seconds running requests have to end", Seconds(&C::drain_timeout_seconds, 3600)},
      {"operation-workers", "Long operations at once", Integer(&C::operation_workers, 1, 2)},
      {"http-threads", "HTTP requests at once", Integer(&C::http_threads, 2, 1024)},
      {"max-streams", "gRPC streams at once on one connection", Integer(&C::max_streams, 1, 100000)},
      {"max-connections", "gRPC connections at once", Integer(&C::max_connections, 1, 100000)},
      {"max-http-connections", "HTTP connections at once, more than http-threads",
       Integer(&C::max_http_connections, 3, 100000)},
      {"watchdog", "Seconds a step may take before health drops, 0 = off", Seconds(&C::watchdog_seconds, 86400)},
  };
  return *keys;
}

std::string EnvironmentName(const std::string& key) {
  std::string name = "SAGE_" + key;
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(toupper(c));
  return name;
}
std::string YamlName(std::string key) {
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

using Layer = std::map<std::string, std::vector<std::string>>;

absl::StatusOr<Layer> ReadYaml(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::string text, ReadFile(path, 1 << 20));
  std::set<std::string> known;
  for (const Key& key : Keys()) known.insert(YamlName(key.name));
  Layer layer;
  try {
    const YAML::Node root = YAML::Load(text);
    if (root.IsNull()) return layer;
    if (!root.IsMap()) return Bad(absl::StrCat(path, ": must be a map of keys"));
    for (const auto& item : root) {
      const std::string name = item.first.as<std::string>();
      if (known.count(name) == 0) {
        return Bad(absl::StrCat(path, ": unknown key \"", name, "\"; known: ", absl::StrJoin(known, ", ")));
      }
      if (item.second.IsSequence()) {
        for (const auto& value : item.second) layer[name].push_back(value.as<std::string>());
      } else {
        layer[name].push_back(item.second.as<std::string>());
      }
    }
  } catch (const YAML::Exception& error) {
    return Bad(absl::StrCat(path, ": ", error.what()));
  }
  return layer;
}

absl::Status Apply(const Key& key, const std::vector<std::string>& values, const std::string& source,
                   DaemonConfig& config) {
  if (!key.repeatable && values.size() != 1) return Bad(absl::StrCat(source, ": one value expected"));
  for (const std::string& value : values) {
    absl::Status status = key.set(config, value);
    if (!status.ok()) return Annotate(status, source);
  }
  return absl::OkStatus();
}

struct CommandLine {
  Layer flags;  // by key name
  std::string config_file;
  bool check_config = false, health = false;
};

// Empty answer = go on; else what to print and the exit code.
std::optional<std::pair<int, std::string>> ParseFlags(const std::vector<std::string>& arguments, CommandLine& out) {
  CLI::App app("sagequantd: the SageQuant daemon", "sagequantd");
  app.set_version_flag("--version", SAGE_VERSION);
  std::map<std::string, std::vector<std::string>> values;
  for (const Key& key : Keys()) {
    if (key.flag) {
      app.add_flag_function(
          "--" + key.name, [&values, name = key.name](int64_t) { values[name] = {"true"}; }, key.help);
    } else {
      auto* option = app.add_option("--" + key.name, values[key.name], key.help);
      option->expected(1);
      option->multi_option_policy(key.repeatable ? CLI::MultiOptionPolicy::TakeAll : CLI::MultiOptionPolicy::TakeLast);
    }
  }
  app.add_option("--config", out.config_file, "YAML file; keys are the flags with '_' for '-'");
  app.add_flag("--check-config", out.check_config, "Check and print the configuration, then exit");
  app.add_flag("--health", out.health, "Ask the running daemon of this configuration whether it lives, then exit");
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    std::ostringstream text;
    const int code = app.exit(error, text, text);
    return std::make_pair(code == 0 ? 0 : 2, text.str());
  }
  for (auto& [name, list] : values) {
    if (!list.empty()) out.flags[name] = std::move(list);
  }
  return std::nullopt;
}

}  // namespace

bool ListenAddress::loopback() const {
  if (!unix_path.empty()) return true;
  return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
}

std::string ListenAddress::ToString() const {
  if (!unix_path.empty()) return "unix:" + unix_path;
  return host.find(':') == std::string::npos ? absl::StrCat(host, ":", port) : absl::StrCat("[", host, "]:", port);
}

absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text) {
  ListenAddress out;
  if (text.rfind("unix:", 0) == 0) {
    out.unix_path = text.substr(5);
    if (out.unix_path.empty() || out.unix_path.size() > 100) {
      return Bad(absl::StrCat("a unix socket path has 1 to 100 bytes, got \"", text, "\""));
    }
    return out;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &out.port) || out.port < 0 ||
      out.port > 65535) {
    return Bad(absl::StrCat("must be HOST:PORT with a port from 0 to 65535, got \"", text, "\""));
  }
  out.host = text.substr(0, colon);
  if (out.host.size() > 2 && out.host.front() == '[' && out.host.back() == ']') {
    out.host = out.host.substr(1, out.host.size() - 2);
  }
  if (out.host.empty()) return Bad(absl::StrCat("must name a host (0.0.0.0 for all), got \"", text, "\""));
  return out;
}

std::map<std::string, std::string> ProcessEnvironment() {
  std::map<std::string, std::string> out;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equal = text.find('=');
    if (equal != std::string::npos) out[text.substr(0, equal)] = text.substr(equal + 1);
  }
  return out;
}

absl::StatusOr<ParsedCommandLine> ParseCommandLine(const std::vector<std::string>& arguments,
                                                   const std::map<std::string, std::string>& environment) {
  ParsedCommandLine out;
  CommandLine line;
  if (auto ended = ParseFlags(arguments, line)) {
    out.exit_now = true;
    std::tie(out.exit_code, out.text) = *ended;
    return out;
  }
  out.config.check_config = line.check_config;
  out.config.health = line.health;
  std::string file = line.config_file;
  if (auto it = environment.find("SAGE_CONFIG"); file.empty() && it != environment.end()) file = it->second;
  Layer yaml;
  if (!file.empty()) {
    SAGE_ASSIGN_OR_RETURN(yaml, ReadYaml(file));
  }
  SAGE_ASSIGN_OR_RETURN(out.config.grpc_listen, ParseListenAddress("127.0.0.1:50551"));
  SAGE_ASSIGN_OR_RETURN(out.config.http_listen, ParseListenAddress("127.0.0.1:50552"));
  for (const Key& key : Keys()) {
    const std::string variable = EnvironmentName(key.name);
    if (auto it = line.flags.find(key.name); it != line.flags.end()) {
      SAGE_RETURN_IF_ERROR(Apply(key, it->second, "--" + key.name, out.config));
    } else if (auto env = environment.find(variable); env != environment.end() && !env->second.empty()) {
      std::vector<std::string> values = {env->second};
      if (key.repeatable) values = absl::StrSplit(env->second, ':');
      SAGE_RETURN_IF_ERROR(Apply(key, values, variable, out.config));
    } else if (auto item = yaml.find(YamlName(key.name)); item != yaml.end()) {
      SAGE_RETURN_IF_ERROR(Apply(key, item->second, absl::StrCat(file, ": ", item->first), out.config));
    }
  }
  return out;
}

absl::Status CheckConfig(const DaemonConfig& config) {
  const bool tls = !config.tls_cert.empty();
  const bool token = !config.token_file.empty();
  if (tls != !config.tls_key.empty()) return Bad("tls-cert and tls-key: both or neither");
  if (!tls && !config.tls_client_ca.empty()) return Bad("tls-client-ca: needs tls-cert and tls-key");
  if (!tls && config.http_tls) return Bad("http-tls: needs tls-cert and tls-key");
  if (!config.grpc_listen.loopback() && !tls && !token) {
    return Bad(absl::StrCat("grpc-listen: beyond loopback needs --tls-cert or --token-file, got ",
                            config.grpc_listen.ToString()));
  }
  if (!config.http_listen.loopback() && !config.http_tls && !token) {
    return Bad(absl::StrCat("http-listen: beyond loopback needs --http-tls or --token-file, got ",
                            config.http_listen.ToString()));
  }
  const std::pair<const char*, const std::string*> files[] = {{"tls-cert", &config.tls_cert},
                                                              {"tls-key", &config.tls_key},
                                                              {"tls-client-ca", &config.tls_client_ca},
                                                              {"token-file", &config.token_file},
                                                              {"engines-file", &config.engines_file}};
  for (const auto& [setting, path] : files) {
    if (path->empty() || access(path->c_str(), R_OK) == 0) continue;
    return Bad(absl::StrCat(setting, ": cannot read ", *path, ": ", std::strerror(errno)));
  }
  for (const std::string& root : config.model_roots) {
    if (!IsDirectory(root)) return Bad(absl::StrCat("model-root: must be a folder, got ", root));
  }
  if (config.max_http_connections <= config.http_threads) {
    return Bad(absl::StrCat("max-http-connections: must be more than http-threads, got ", config.max_http_connections,
                            " and ", config.http_threads));
  }
  if (config.data_dir.empty()) return Bad("data-dir: must not be empty");
  return absl::OkStatus();
}

std::vector<std::string> ConfigWarnings(const DaemonConfig& config) {
  std::vector<std::string> out;
  if (!config.token_file.empty()) return out;
  const bool clients_known = !config.tls_client_ca.empty();
  for (const auto& [name, address] :
       {std::make_pair("grpc-listen", &config.grpc_listen), std::make_pair("http-listen", &config.http_listen)}) {
    if (address->loopback() || clients_known) continue;
    out.push_back(absl::StrCat(name, ": whoever reaches ", address->ToString(),
                               " may do everything, as an admin: there is neither --token-file nor --tls-client-ca"));
  }
  return out;
}

std::string DescribeConfig(const DaemonConfig& c) {
  const auto word = [](bool on) { return std::string(on ? "true" : "false"); };
  const std::pair<const char*, std::string> lines[] = {
      {"data_dir", c.data_dir},
      {"model_root", absl::StrCat("[", absl::StrJoin(c.model_roots, ", "), "]")},
      {"grpc_listen", c.grpc_listen.ToString()},
      {"http_listen", c.http_listen.ToString()},
      {"threads", absl::StrCat(c.threads)},
      {"port_file", c.port_file},
      {"tls", c.tls_cert.empty() ? "off" : c.tls_client_ca.empty() ? "on" : "mutual"},
      {"tls_cert", c.tls_cert},
      {"tls_key", c.tls_key},
      {"tls_client_ca", c.tls_client_ca},
      {"http_tls", word(c.http_tls)},
      {"token", c.token_file.empty() ? "off" : "on"},
      {"token_file", c.token_file},
      {"audit_log", c.audit_log},
      {"engines_file", c.engines_file},
      {"otlp_endpoint", c.otlp_endpoint},
      {"open_metrics", word(c.open_metrics)},
      {"log_format", c.log_format},
      {"log_level", c.log_level},
      {"drain_delay", absl::StrCat(c.drain_delay_seconds)},
      {"drain_timeout", absl::StrCat(c.drain_timeout_seconds)},
      {"operation_workers", absl::StrCat(c.operation_workers)},
      {"http_threads", absl::StrCat(c.http_threads)},
      {"max_streams", absl::StrCat(c.max_streams)},
      {"max_connections", absl::StrCat(c.max_connections)},
      {"max_http_connections", absl::StrCat(c.max_http_connections)},
      {"watchdog", absl::StrCat(c.watchdog_seconds)},
  };
  std::string out;
  for (const auto& [key, value] : lines) absl::StrAppend(&out, key, ": ", value, "\n");
  for (const std::string& warning : ConfigWarnings(c)) absl::StrAppend(&out, "warning: ", warning, "\n");
  return out;
}

}  // namespace sage::server
