// Settings: precedence of flags, environment and file, and what is refused.
#include "server/config.h"

#include <unistd.h>

#include <fstream>

#include "gtest/gtest.h"

namespace sage::server {
namespace {

std::string TempFile(const std::string& content) {
  const std::string path = testing::TempDir() + "/config_test_" + std::to_string(getpid()) + ".yaml";
  std::ofstream(path) << content;
  return path;
}

TEST(Config, FlagsBeatEnvironmentBeatsFile) {
  const std::string file = TempFile("threads: 1\nlog_level: warn\ndata_dir: from-file\nmodel_root: [a, b]\n");
  auto line =
      ParseCommandLine({"--config", file, "--threads", "3"}, {{"SAGE_THREADS", "2"}, {"SAGE_LOG_LEVEL", "error"}});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->config.threads, 3);
  EXPECT_EQ(line->config.log_level, "error");
  EXPECT_EQ(line->config.data_dir, "from-file");
  EXPECT_EQ(line->config.model_roots, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(line->config.grpc_listen.ToString(), "127.0.0.1:50551");
  EXPECT_EQ(line->config.http_listen.ToString(), "127.0.0.1:50552");
}

TEST(Config, ModelRootRepeatsAndReplacesTheEnvironment) {
  auto line = ParseCommandLine({"--model-root", "x", "--model-root", "y"}, {{"SAGE_MODEL_ROOT", "p:q"}});
  ASSERT_TRUE(line.ok());
  EXPECT_EQ(line->config.model_roots, (std::vector<std::string>{"x", "y"}));
  line = ParseCommandLine({}, {{"SAGE_MODEL_ROOT", "p:q"}});
  ASSERT_TRUE(line.ok());
  EXPECT_EQ(line->config.model_roots, (std::vector<std::string>{"p", "q"}));
}

TEST(Config, RefusesUnknownKeysAndBadValues) {
  auto line = ParseCommandLine({"--config", TempFile("thread: 1\n")}, {});
  ASSERT_FALSE(line.ok());
  EXPECT_NE(std::string(line.status().message()).find("thread"), std::string::npos);
  EXPECT_FALSE(ParseCommandLine({"--threads", "-1"}, {}).ok());
  EXPECT_FALSE(ParseCommandLine({"--grpc-listen", "nohost"}, {}).ok());
  EXPECT_FALSE(ParseCommandLine({"--grpc-listen", "h:70000"}, {}).ok());
  EXPECT_FALSE(ParseCommandLine({"--log-format", "xml"}, {}).ok());
  EXPECT_FALSE(ParseCommandLine({"--config", TempFile("threads: [1, 2]\n")}, {}).ok());
  EXPECT_FALSE(ParseCommandLine({"--config", TempFile("a: [\n")}, {}).ok());
  auto usage = ParseCommandLine({"--no-such"}, {});
  ASSERT_TRUE(usage.ok());
  EXPECT_TRUE(usage->exit_now);
  EXPECT_EQ(usage->exit_code, 2);
}

TEST(Config, Addresses) {
  EXPECT_EQ(ParseListenAddress("unix:/x/y.sock")->ToString(), "unix:/x/y.sock");
  EXPECT_TRUE(ParseListenAddress("unix:/x/y.sock")->loopback());
  EXPECT_TRUE(ParseListenAddress("[::1]:80")->loopback());
  EXPECT_EQ(ParseListenAddress("[::1]:80")->ToString(), "[::1]:80");
  EXPECT_FALSE(ParseListenAddress("0.0.0.0:80")->loopback());
  EXPECT_FALSE(ParseListenAddress(":80").ok());
  EXPECT_FALSE(ParseListenAddress("unix:").ok());
}

TEST(Config, BeyondLoopbackNeedsTlsOrToken) {
  auto line = ParseCommandLine({"--grpc-listen", "0.0.0.0:1"}, {});
  ASSERT_TRUE(line.ok());
  EXPECT_FALSE(CheckConfig(line->config).ok());
  line = ParseCommandLine({"--grpc-listen", "0.0.0.0:1", "--http-listen", "0.0.0.0:2", "--token-file", TempFile("t\n")},
                          {});
  ASSERT_TRUE(line.ok());
  EXPECT_TRUE(CheckConfig(line->config).ok()) << CheckConfig(line->config);
  line = ParseCommandLine({"--tls-cert", TempFile("x")}, {});
  ASSERT_TRUE(line.ok());
  EXPECT_FALSE(CheckConfig(line->config).ok());
}

TEST(Config, HttpConnectionsAreMoreThanThreads) {
  auto line = ParseCommandLine({"--http-threads", "8", "--max-http-connections", "8"}, {});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_NE(std::string(CheckConfig(line->config).message()).find("got 8 and 8"), std::string::npos);
  line = ParseCommandLine({"--http-threads", "8"}, {{"SAGE_MAX_HTTP_CONNECTIONS", "9"}});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->config.max_http_connections, 9);
  EXPECT_TRUE(CheckConfig(line->config).ok()) << CheckConfig(line->config);
}

TEST(Config, WarnsOfAPortThatIsOpenToEveryone) {
  const std::string file = TempFile("x");
  const std::vector<std::string> tls = {"--tls-cert",    file,        "--tls-key",     file,    "--http-tls",
                                        "--grpc-listen", "0.0.0.0:1", "--http-listen", "[::]:2"};
  auto line = ParseCommandLine(tls, {});
  ASSERT_TRUE(line.ok()) << line.status();
  ASSERT_TRUE(CheckConfig(line->config).ok()) << CheckConfig(line->config);
  const std::vector<std::string> warnings = ConfigWarnings(line->config);
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_EQ(warnings[0].rfind("grpc-listen: ", 0), 0u) << warnings[0];
  EXPECT_NE(warnings[1].find("[::]:2"), std::string::npos) << warnings[1];
  EXPECT_NE(DescribeConfig(line->config).find("\nwarning: http-listen: "), std::string::npos);
  for (const char* lock : {"--token-file", "--tls-client-ca"}) {
    std::vector<std::string> locked = tls;
    locked.insert(locked.end(), {lock, file});
    line = ParseCommandLine(locked, {});
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_TRUE(ConfigWarnings(line->config).empty()) << lock;
  }
  EXPECT_TRUE(ConfigWarnings(ParseCommandLine({}, {})->config).empty()) << "loopback";
}

// Each file by its setting, with what the system says of it.
TEST(Config, UnreadableFilesAreNamed) {
  for (const std::string flag : {"token-file", "engines-file"}) {
    const auto line = ParseCommandLine({"--" + flag, "/nowhere/at-all"}, {});
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_EQ(CheckConfig(line->config).message(), flag + ": cannot read /nowhere/at-all: No such file or directory");
  }
}

TEST(Config, Durations) {
  auto line = ParseCommandLine({"--drain-timeout", "500ms", "--drain-delay", "2m"}, {});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_DOUBLE_EQ(line->config.drain_timeout_seconds, 0.5);
  EXPECT_DOUBLE_EQ(line->config.drain_delay_seconds, 120);
  EXPECT_FALSE(ParseCommandLine({"--drain-delay", "soon"}, {}).ok());
}

}  // namespace
}  // namespace sage::server
