// Which outputs are folders of this machine, and which texts may be sent.
#include "client/cli/export_folder.h"

#include <gtest/gtest.h>

namespace sage::cli {
namespace {

TEST(ExportFolder, NamesAndFolders) {
  for (const char* name : {"name", "name/", "name//", "..", "../name", "a/../b", "/a/../b"}) {
    EXPECT_FALSE(NamesFolder(name)) << name;  // the daemon's: it refuses ".."
  }
  for (const char* folder : {"./name", "a/b", "a/b/", "/tmp/out", "/out"}) EXPECT_TRUE(NamesFolder(folder)) << folder;
  EXPECT_EQ(WithoutTrailingSlash("a/b//"), "a/b");
  EXPECT_EQ(WithoutTrailingSlash("/"), "/");
}

TEST(CheckUtf8, PassesTextAndRefusesTheRest) {
  for (const char* text :
       {"", "plain", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"}) {
    EXPECT_FALSE(CheckUtf8("text", text).has_value()) << text;
  }
  const std::pair<const char*, const char*> broken[] = {{"ab\xFF", "at 2"},           {"\xC3", "at 0"},
                                                        {"a\xC3z", "at 1"},           {"\x80", "at 0"},
                                                        {"\xC0\x80", "at 0"},         {"\xE0\x80\x80", "at 0"},
                                                        {"\xED\xA0\x80", "at 0"},     {"\xF0\x80\x80\x80", "at 0"},
                                                        {"\xF4\x90\x80\x80", "at 0"}, {"\xF5\x80\x80\x80", "at 0"}};
  for (const auto& [text, place] : broken) {
    const auto failure = CheckUtf8("--prompt", text);
    ASSERT_TRUE(failure.has_value()) << text;
    EXPECT_EQ(failure->reason, "TEXT_INVALID_UTF8");
    EXPECT_EQ(failure->exit_code, kUsage);
    EXPECT_NE(failure->message.find(place), std::string::npos) << failure->message;
  }
}

}  // namespace
}  // namespace sage::cli
