// Which template a conversation takes.
#include "engine/api/engine.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage::render_chat_test {
namespace {

TEST(RenderChat, ToolsTakeTheirOwnTemplate) {
  TokenizerFiles files;
  files.chat_template = "plain";
  files.tool_template = "tools {{ tools | length }}";
  const OrderedJson none = {{"messages", OrderedJson::array()}};
  OrderedJson tools = none;
  tools["tools"] = OrderedJson::array({{{"type", "function"}}});
  EXPECT_EQ(*RenderChat(files, none, true), "plain");
  EXPECT_EQ(*RenderChat(files, tools, true), "tools 1");
  tools["tools"] = nullptr;
  EXPECT_EQ(*RenderChat(files, tools, true), "plain");
  files.tool_template.clear();
  tools["tools"] = OrderedJson::array({{{"type", "function"}}});
  EXPECT_EQ(*RenderChat(files, tools, true), "plain");
  // With tool_use alone a conversation without tools has no template.
  files.tool_template = "tools";
  files.chat_template.clear();
  EXPECT_EQ(*RenderChat(files, tools, true), "tools");
  EXPECT_EQ(GetErrorReason(RenderChat(files, none, true).status()).reason, "NO_CHAT_TEMPLATE");
}

TEST(RenderChat, ToolsAndDocumentsAreNoneWhereNobodyGaveThem) {
  TokenizerFiles files;
  files.chat_template = "{% if tools is not none %}tools{% endif %}{{ tools is defined }} {{ documents is none }}";
  EXPECT_EQ(*RenderChat(files, {{"messages", OrderedJson::array()}}, true), "True True");
  EXPECT_EQ(*RenderChat(files, {{"tools", OrderedJson::array()}, {"documents", 1}}, true), "toolsTrue False");
}

}  // namespace
}  // namespace sage::render_chat_test
