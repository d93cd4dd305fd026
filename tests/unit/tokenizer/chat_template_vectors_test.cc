// Chat templates of real models and Jinja conformance cases: renderings must equal the recorded ones exactly.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/base/json.h"
#include "engine/tokenizer/chat_template.h"

namespace sage {
namespace {

// A fixed clock: 2025-07-10, 12:00 UTC, which one recorded rendering shows.
constexpr int64_t kNow = 1752148800;

std::string Folder() { return std::string(SAGE_SOURCE_DIR) + "/../shared/data/tokenizers/chat-templates/"; }

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

OrderedJson Cases(const std::string& file) { return OrderedJson::parse(ReadText(Folder() + file)); }

absl::StatusOr<std::string> Render(const std::string& source, const OrderedJson& context) {
  const auto compiled = ChatTemplate::Compile(source);
  if (!compiled.ok()) return compiled.status();
  return (*compiled)->Render(context, kNow);
}

void ExpectRendering(const std::string& name, const absl::StatusOr<std::string>& got, const std::string& want) {
  ASSERT_TRUE(got.ok()) << name << ": " << got.status();
  EXPECT_EQ(*got, want) << name;
}

TEST(ChatTemplateVectors, JinjaConformance) {
  if (!std::filesystem::exists(Folder())) GTEST_SKIP() << "shared chat templates are absent";
  for (const OrderedJson& c : Cases("jinja_conformance_cases.json")) {
    ExpectRendering(c["name"], Render(c["template"], c["context"]), c["expected"]);
  }
}

TEST(ChatTemplateVectors, TemplatesOfHuggingFaceModels) {
  if (!std::filesystem::exists(Folder())) GTEST_SKIP() << "shared chat templates are absent";
  for (const OrderedJson& c : Cases("hf_chat_template_cases.json")) {
    ExpectRendering(c["name"], Render(c["chat_template"], c["context"]), c["expected"]);
  }
}

TEST(ChatTemplateVectors, RenderedByJinja2) {
  if (!std::filesystem::exists(Folder())) GTEST_SKIP() << "shared chat templates are absent";
  for (const OrderedJson& c : Cases("rendered_by_jinja2.json")) {
    const std::string file = c["template_file"];
    std::string path = Folder() + "templates/" + file;
    if (!std::filesystem::exists(path))
      path = Folder() + "templates/" + std::filesystem::path(file).filename().string();
    const std::string name = file + " " + c["case"].get<std::string>();
    const auto got = Render(ReadText(path), c["context"]);
    if (c.contains("error")) {
      EXPECT_FALSE(got.ok()) << name << " must fail: " << c["error"];
    } else {
      ExpectRendering(name, got, c["expected"]);
    }
  }
}

TEST(ChatTemplateVectors, LimitsAreKept) {
  const OrderedJson none = OrderedJson::object();
  EXPECT_FALSE(Render("{{ 'a' * 10000000000 }}", none).ok());
  EXPECT_FALSE(Render("{% for i in range(100000000000) %}{{ i }}{% endfor %}", none).ok());
  EXPECT_FALSE(Render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", none).ok());
  EXPECT_FALSE(Render("{{ " + std::string(100000, '(') + "1", none).ok());
  EXPECT_FALSE(Render("{{ raise_exception('no') }}", none).ok());
  EXPECT_FALSE(Render("{% if %}", none).ok());
}

}  // namespace
}  // namespace sage
