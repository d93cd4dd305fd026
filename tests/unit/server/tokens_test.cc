// Bearer tokens: the file's grammar, roles per method, rates, reloads; nothing of a token shows in a message.
#include "server/security/tokens.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sage::server {
namespace {

std::string Reason(const absl::Status& status) { return GetErrorReason(status).reason; }

TEST(Tokens, RolesIncludeTheLesserOnes) {
  auto table = TokenTable::Parse("# who\nall-powers\n\n  reader-1 read name=grafana # \n");
  EXPECT_FALSE(table.ok()) << "a comment behind a token is not a word of the grammar";
  table = TokenTable::Parse("# who\nall-powers\n\n  reader-1\tread name=grafana\nmaker-01 generate\n");
  ASSERT_TRUE(table.ok()) << table.status();
  const absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(*(*table)->Check("Bearer reader-1", Role::kRead, now), "grafana");
  EXPECT_EQ(Reason((*table)->Check("Bearer reader-1", Role::kGenerate, now).status()), "ROLE_INSUFFICIENT");
  EXPECT_TRUE((*table)->Check("bearer  maker-01 ", Role::kGenerate, now).ok());
  EXPECT_TRUE((*table)->Check("Bearer maker-01", Role::kRead, now).ok());
  EXPECT_EQ(Reason((*table)->Check("Bearer maker-01", Role::kAdmin, now).status()), "ROLE_INSUFFICIENT");
  const auto admin = (*table)->Check("Bearer all-powers", Role::kAdmin, now);
  ASSERT_TRUE(admin.ok());
  EXPECT_EQ(admin->find("powers"), std::string::npos) << "the name of a nameless token gives nothing away";
  EXPECT_EQ(Reason((*table)->Check("", Role::kRead, now).status()), "TOKEN_MISSING");
  EXPECT_EQ(Reason((*table)->Check("Basic all-powers", Role::kRead, now).status()), "TOKEN_MISSING");
  EXPECT_EQ(Reason((*table)->Check("Bearer ", Role::kRead, now).status()), "TOKEN_MISSING");
  EXPECT_EQ(Reason((*table)->Check("Bearer all-power", Role::kRead, now).status()), "TOKEN_INVALID");
}

TEST(Tokens, AHashStandsForItsToken) {
  auto table = TokenTable::Parse("sha256:" + Sha256Hex("hidden") + " read");
  ASSERT_TRUE(table.ok());
  EXPECT_TRUE((*table)->Check("Bearer hidden", Role::kRead, absl::UnixEpoch()).ok());
  EXPECT_FALSE((*table)->Check("Bearer sha256:" + Sha256Hex("hidden"), Role::kRead, absl::UnixEpoch()).ok());
}

TEST(Tokens, BadLinesAreNamedByNumberAndNotShown) {
  for (const char* line : {"sec-ret write", "sec-ret read rate=0", "sec-ret burst=3", "sec-ret rate=x",
                           "sec-ret name=", "sha256:sec-ret", "ab", "sec-ret rate=1 burst=0.5", "sec-ret\nsec-ret"}) {
    const auto table = TokenTable::Parse(std::string("# first\n") + line);
    ASSERT_FALSE(table.ok()) << line;
    EXPECT_EQ(Reason(table.status()), "BAD_CONFIG");
    EXPECT_THAT(std::string(table.status().message()), testing::HasSubstr("line "));
    EXPECT_THAT(std::string(table.status().message()), testing::Not(testing::HasSubstr("sec-ret")));
  }
  EXPECT_FALSE(TokenTable::Parse("\n# nobody\n").ok());
}

TEST(Tokens, RatesAreHeldPerToken) {
  auto table = TokenTable::Parse("slow-one read rate=2 burst=3\nfree-one read");
  ASSERT_TRUE(table.ok());
  absl::Time now = absl::FromUnixSeconds(1000);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE((*table)->Check("Bearer slow-one", Role::kRead, now).ok());
  const absl::Status refused = (*table)->Check("Bearer slow-one", Role::kRead, now).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(refused), "RATE_LIMITED");
  for (int i = 0; i < 100; ++i) EXPECT_TRUE((*table)->Check("Bearer free-one", Role::kRead, now).ok());
  now += absl::Milliseconds(500);
  EXPECT_TRUE((*table)->Check("Bearer slow-one", Role::kRead, now).ok());
  EXPECT_FALSE((*table)->Check("Bearer slow-one", Role::kRead, now).ok());
  // Whatever the spacing, ten seconds hold no more than the burst and ten times the rate.
  int passed = 0;
  for (int i = 0; i < 10000; ++i)
    passed += (*table)->Check("Bearer slow-one", Role::kRead, now += absl::Milliseconds(1)).ok();
  EXPECT_LE(passed, 23);
  EXPECT_GE(passed, 19);
  auto fresh = TokenTable::Parse("slow-one read rate=2 burst=3");
  ASSERT_TRUE(fresh.ok());
  (*fresh)->TakeBuckets(**table);
  EXPECT_FALSE((*fresh)->Check("Bearer slow-one", Role::kRead, now).ok()) << "a reload does not refill";
}

TEST(Tokens, MethodsThatAreNotListedNeedAdmin) {
  EXPECT_EQ(RoleOfMethod("ListEngines"), Role::kRead);
  EXPECT_EQ(RoleOfMethod("Chat"), Role::kGenerate);
  for (const char* method : {"Calibrate", "Convert", "StartEngine", "StopEngine", "LoadModel", "DeleteArtifact",
                             "ExportArtifact", "Evaluate", "CancelOperation", "SomethingNew", ""}) {
    EXPECT_EQ(RoleOfMethod(method), Role::kAdmin) << method;
    EXPECT_TRUE(IsMutation(method));
  }
}

TEST(Tokens, TheDoorTakesUpAChangedFileAndKeepsAGoodOne) {
  const std::string path = testing::TempDir() + "/tokens_test_" + std::to_string(getpid());
  const auto write = [&](const std::string& text) {  // as an editor and as Kubernetes do: a new file under the name
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
  };
  write("first-one");
  Door door;
  ASSERT_TRUE(door.Open(path).ok());
  EXPECT_TRUE(door.Check("Bearer first-one", "Calibrate").ok());
  EXPECT_FALSE(*door.Reload());
  write("second-one read");
  EXPECT_TRUE(*door.Reload());
  EXPECT_FALSE(door.Check("Bearer first-one", "ListEngines").ok());
  EXPECT_TRUE(door.Check("Bearer second-one", "ListEngines").ok());
  write("a b c");
  EXPECT_FALSE(door.Reload().ok());
  EXPECT_TRUE(door.Check("Bearer second-one", "ListEngines").ok()) << "a bad file changes nothing";
  std::filesystem::remove(path);
  EXPECT_FALSE(door.Reload().ok());
  EXPECT_TRUE(door.Check("Bearer second-one", "ListEngines").ok());
  EXPECT_FALSE(Door().Open(path).ok());
  Door open;
  ASSERT_TRUE(open.Open("").ok());
  EXPECT_TRUE(open.Check("", "Calibrate").ok());
}

}  // namespace
}  // namespace sage::server
