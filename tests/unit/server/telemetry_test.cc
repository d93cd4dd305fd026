// Trace context, OTLP bodies and their bounded queue, the audit file, counters that begin at zero.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "httplib.h"
#include "server/telemetry/audit.h"
#include "server/telemetry/metrics.h"
#include "server/telemetry/otlp.h"
#include "server/telemetry/trace.h"

namespace sage::server {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736", kParent[] = "00f067aa0ba902b7";

TEST(Trace, ContinuesWhatIsWellFormed) {
  const TraceContext got = ContinueTrace({std::string("00-") + kTrace + "-" + kParent + "-01", ""});
  EXPECT_EQ(got.trace_id, kTrace);
  EXPECT_EQ(got.parent_id, kParent);
  EXPECT_TRUE(got.sampled);
  EXPECT_EQ(got.span_id.size(), 16u);
  EXPECT_EQ(Traceparent(got), std::string("00-") + kTrace + "-" + got.span_id + "-01");
  EXPECT_FALSE(ContinueTrace({std::string("00-") + kTrace + "-" + kParent + "-00", ""}).sampled);
  // A later version may have more fields; ours may not.
  EXPECT_EQ(ContinueTrace({std::string("cc-") + kTrace + "-" + kParent + "-01-more", ""}).trace_id, kTrace);
}

TEST(Trace, PassesTheStateOnOnlyWithItsTrace) {
  const std::string parent = std::string("00-") + kTrace + "-" + kParent + "-01";
  const TraceContext got = ContinueTrace({parent, "vendor=a,other=b"});
  EXPECT_EQ(got.state, "vendor=a,other=b");
  EXPECT_EQ(ChildOf(got).state, got.state);
  EXPECT_EQ(ContinueTrace({"", "vendor=a"}).state, "");
  EXPECT_EQ(ContinueTrace({parent, std::string(513, 'x')}).state, "");
  EXPECT_EQ(ContinueTrace({parent, "a=\n"}).state, "");
  Span span;
  span.context = got;
  EXPECT_EQ(OtlpBody({span}, "1")["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceState"], got.state);
}

TEST(Trace, BeginsAFreshOneOtherwise) {
  const std::string zero32(32, '0'), zero16(16, '0');
  const std::string good = std::string("00-") + kTrace + "-" + kParent + "-01";
  for (const std::string& bad :
       {std::string(), std::string("00"), good.substr(0, 54), good + "-more", good + "x", "ff" + good.substr(2),
        "00-" + zero32 + "-" + kParent + "-01", std::string("00-") + kTrace + "-" + zero16 + "-01",
        "00-" + std::string(32, 'G') + "-" + kParent + "-01", "0G" + good.substr(2), std::string(55, '-'),
        "00-" + std::string("4BF92F3577B34DA6A3CE929D0E0E4736") + "-" + kParent + "-01"}) {
    const TraceContext got = ContinueTrace({bad, "a=b"});
    EXPECT_NE(got.trace_id, kTrace) << bad;
    EXPECT_EQ(got.trace_id.size(), 32u);
    EXPECT_TRUE(got.parent_id.empty());
  }
  EXPECT_NE(ContinueTrace({}).trace_id, ContinueTrace({}).trace_id);
}

Span SomeSpan(bool sampled = true) {
  Span span;
  span.context = {kTrace, kParent, "1111111111111111", sampled};
  span.name = "grpc Generate";
  span.begin = absl::FromUnixNanos(1700000000000000001);
  span.end = span.begin + absl::Milliseconds(5);
  span.attributes = {{"rpc.method", "Generate"}};
  return span;
}

TEST(Otlp, BodyIsTheJsonMapping) {
  const Json body = OtlpBody({SomeSpan()}, "9");
  const Json& span = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
  EXPECT_EQ(span["traceId"], kTrace);
  EXPECT_EQ(span["parentSpanId"], kParent);
  EXPECT_EQ(span["startTimeUnixNano"], "1700000000000000001") << "64-bit numbers are strings in the mapping";
  EXPECT_EQ(span["endTimeUnixNano"], "1700000000005000001");
  EXPECT_EQ(span["kind"], 2);
  EXPECT_EQ(span["attributes"][0]["value"]["stringValue"], "Generate");
  EXPECT_EQ(body["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"], "sagequantd");
}

TEST(Otlp, RefusesOtherEndpoints) {
  PrometheusMetrics metrics;
  for (const char* bad : {"", "https://a:1", "http://", "http://:1", "http://a:0", "http://a:x", "a:4318"}) {
    const auto made = OtlpExporter::Create(bad, metrics);
    ASSERT_FALSE(made.ok()) << bad;
    EXPECT_EQ(GetErrorReason(made.status()).reason, "BAD_CONFIG");
  }
}

TEST(Otlp, SendsToACollectorAndFlushesAtTheEnd) {
  httplib::Server collector;
  std::atomic<int> spans{0};
  collector.Post("/v1/traces", [&](const httplib::Request& request, httplib::Response& response) {
    const Json body = Json::parse(request.body);
    spans += static_cast<int>(body["resourceSpans"][0]["scopeSpans"][0]["spans"].size());
    response.set_content("{}", "application/json");
  });
  const int port = collector.bind_to_any_port("127.0.0.1");
  std::thread serve([&] { collector.listen_after_bind(); });
  while (!collector.is_running()) std::this_thread::yield();
  PrometheusMetrics metrics;
  {
    auto exporter = OtlpExporter::Create("http://127.0.0.1:" + std::to_string(port), metrics);
    ASSERT_TRUE(exporter.ok()) << exporter.status();
    for (int i = 0; i < 700; ++i) (*exporter)->Add(SomeSpan());
    (*exporter)->Add(SomeSpan(/*sampled=*/false));
  }
  collector.stop();
  serve.join();
  EXPECT_EQ(spans, 700);
  EXPECT_THAT(metrics.Text(), testing::HasSubstr("sage_spans_total{result=\"sent\"} 700"));
}

TEST(Otlp, AnAbsentCollectorCostsABoundedQueue) {
  PrometheusMetrics metrics;
  const absl::Time began = absl::Now();
  {
    auto exporter = OtlpExporter::Create("http://127.0.0.1:1", metrics);
    ASSERT_TRUE(exporter.ok());
    for (int i = 0; i < 20000; ++i) (*exporter)->Add(SomeSpan());
  }
  EXPECT_LT(absl::Now() - began, absl::Seconds(20));
  EXPECT_THAT(metrics.Text(), testing::HasSubstr("sage_spans_total{result=\"dropped\"}"));
}

TEST(Audit, LinesAreAppendedForTheOwnerOnly) {
  const std::string path = testing::TempDir() + "/audit_test_" + std::to_string(getpid()) + ".log";
  std::filesystem::remove(path);
  AuditLog log(path);
  log.Write({{"method", "StartEngine"}, {"caller", "ops\nfake"}});
  std::filesystem::remove(path);  // rotated away
  log.Write({{"method", "StopEngine"}});
  log.Write({{"method", "Calibrate"}});
  std::ostringstream read;
  read << std::ifstream(path).rdbuf();
  const std::string text = read.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_EQ(Json::parse(text.substr(0, text.find('\n')))["method"], "StopEngine");
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(Metrics, ProcessFiguresAndZeroCounters) {
  PrometheusMetrics metrics;
  metrics.Increment("sage_rejections_total", {{"reason", "QUEUE_FULL"}}, 0);
  metrics.Increment("sage_rejections_total", {{"reason", "QUEUE_FULL"}}, -1);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, testing::HasSubstr("sage_rejections_total{reason=\"QUEUE_FULL\"} 0"));
  for (const char* name : {"sage_process_cpu_seconds_total ", "sage_process_start_time_seconds ",
                           "sage_process_open_files ", "sage_process_resident_memory_bytes "}) {
    EXPECT_THAT(text, testing::HasSubstr(name));
  }
}

}  // namespace
}  // namespace sage::server
