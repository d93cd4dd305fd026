// The daemon's settings: flags over environment over YAML file, checked before anything starts.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sage::server {

// One address to listen on: host and port, or a unix socket.
struct ListenAddress {
  std::string host;       // empty for a unix socket
  int port = 0;           // 0 = any free one
  std::string unix_path;  // empty for TCP
  bool loopback() const;  // reachable from this machine only
  std::string ToString() const;
};
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text);

struct DaemonConfig {
  std::string data_dir = "sage-data";
  std::vector<std::string> model_roots;
  ListenAddress grpc_listen, http_listen;
  int threads = 0;  // compute threads, 0 = hardware threads
  std::string port_file;
  std::string tls_cert, tls_key, tls_client_ca;
  bool http_tls = false;
  std::string token_file;
  std::string audit_log;      // file that gets a line for every mutation; empty = the log
  std::string engines_file;   // JSON array of engines to start before the daemon is ready
  std::string otlp_endpoint;  // http://HOST:PORT of a collector; empty = no spans are sent
  bool open_metrics = false;  // /metrics without the token
  std::string log_format = "json", log_level = "info";
  double drain_delay_seconds = 0, drain_timeout_seconds = 30;
  int operation_workers = 1;
  int http_threads = 128;
  int max_streams = 1024;
  int max_connections = 1024;  // of the gRPC port over TCP
  int max_http_connections = 1024;
  double watchdog_seconds = 120;  // a step older than this makes the daemon NOT_SERVING
  bool check_config = false;
  bool health = false;  // probe the daemon of this configuration and exit
};

// How the command line ended: run, or print `text` and exit.
struct ParsedCommandLine {
  DaemonConfig config;
  bool exit_now = false;
  int exit_code = 0;
  std::string text;
};

// Reads flags, `environment` (SAGE_DATA_DIR, ...; SAGE_MODEL_ROOT may hold several, separated by ':') and the YAML file
// of --config / SAGE_CONFIG (keys data_dir, model_root: [..], ...; unknown keys are refused). INVALID_ARGUMENT
// (BAD_CONFIG) names the key, the rule and where the value came from.
absl::StatusOr<ParsedCommandLine> ParseCommandLine(const std::vector<std::string>& arguments,
                                                   const std::map<std::string, std::string>& environment);
// The process's environment as a map.
std::map<std::string, std::string> ProcessEnvironment();

// Beyond loopback only with TLS or a token; files that are named must exist.
absl::Status CheckConfig(const DaemonConfig& config);
// What is allowed and probably not meant, one sentence each.
std::vector<std::string> ConfigWarnings(const DaemonConfig& config);
// One "key: value" a line (every key; files by name, whether TLS and tokens are on), the warnings last; nothing secret
// is in it.
std::string DescribeConfig(const DaemonConfig& c);

}  // namespace sage::server
