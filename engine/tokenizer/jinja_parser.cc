// The parser of statements and assignment targets; expressions are in jinja_parser_expr.cc.
#include "engine/tokenizer/jinja_parser.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage::jinja {

int Program::NameId(const std::string& name) {
  const auto [it, added] = name_ids.emplace(name, static_cast<int>(names.size()));
  if (added) names.push_back(String(name));
  return it->second;
}

StrObj* Program::String(std::string text) {
  strings.push_back(std::make_unique<StrObj>(std::move(text)));
  strings.back()->immortal = true;
  return strings.back().get();
}

NodePtr Parser::New(Kind kind) const {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->line = Current().line;
  return node;
}

bool Parser::Fail(std::string_view message) {
  if (status_.ok()) status_ = SyntaxError(Current().line, message);
  return false;
}

std::string Parser::Describe() const {
  const Token& t = Current();
  switch (t.type) {
    case Tok::kBlockEnd:
      return "end of statement block";
    case Tok::kVariableEnd:
      return "end of print statement";
    case Tok::kEnd:
      return "end of template";
    case Tok::kInteger:
      return std::to_string(t.integer);
    case Tok::kFloat:
      return "a float";
    default:
      return t.text.substr(0, 60);
  }
}

bool Parser::ExpectOp(std::string_view op) {
  if (SkipOp(op)) return true;
  return Fail(absl::StrCat("expected token '", std::string(op), "', got '", Describe(), "'"));
}

bool Parser::ExpectWord(std::string_view word) {
  if (SkipWord(word)) return true;
  return Fail(absl::StrCat("expected token '", std::string(word), "', got '", Describe(), "'"));
}

bool Parser::ExpectName(std::string* name) {
  if (Current().type != Tok::kName) return Fail(absl::StrCat("expected a name, got '", Describe(), "'"));
  *name = Current().text;
  Next();
  return true;
}

bool Parser::Grow(Node* node) {
  int deepest = 0;
  const auto see = [&](const NodePtr& child) {
    if (child != nullptr && child->depth > deepest) deepest = child->depth;
  };
  see(node->a);
  see(node->b);
  see(node->c);
  see(node->star);
  see(node->star_star);
  for (const auto& child : node->list) see(child);
  for (const auto& keyword : node->keywords) see(keyword.value);
  node->depth = deepest + 1;
  return node->depth <= max_depth_ || Fail(absl::StrCat("nesting must be at most ", max_depth_));
}

bool Parser::ParseProgram() { return ParseBody({}, &program_->body, nullptr); }

// Statements until a tag whose word is one of `ends`; that word is consumed and stored.
bool Parser::ParseBody(std::initializer_list<std::string_view> ends, Body* body, std::string* end) {
  Nesting nesting(this);
  if (!nesting.ok()) return false;
  while (true) {
    const Token& token = Current();
    if (token.type == Tok::kEnd) {
      if (ends.size() == 0) return true;
      return Fail(absl::StrCat("unexpected end of template; expected '", std::string(*ends.begin()), "'"));
    }
    if (token.type == Tok::kData) {
      NodePtr node = New(Kind::kText);
      node->value = Value::Object(Type::kString, program_->String(token.text));
      body->push_back(std::move(node));
      Next();
      continue;
    }
    if (token.type == Tok::kVariableBegin) {
      Next();
      NodePtr node = New(Kind::kOutput);
      if (!ParseTuple({}, &node->a)) return false;
      if (Current().type != Tok::kVariableEnd) return Fail(absl::StrCat("unexpected '", Describe(), "'"));
      Next();
      body->push_back(std::move(node));
      continue;
    }
    Next();  // block begin
    for (const std::string_view word : ends) {
      if (IsWord(word)) {
        if (end != nullptr) *end = std::string(word);
        Next();
        return true;
      }
    }
    NodePtr node;
    if (!ParseStatement(&node) || !ExpectBlockEnd()) return false;
    if (node != nullptr) body->push_back(std::move(node));
  }
}

bool Parser::ExpectBlockEnd() {
  if (Current().type != Tok::kBlockEnd) {
    return Fail(absl::StrCat("expected token 'end of statement block', got '", Describe(), "'"));
  }
  Next();
  return true;
}

// The rest of an opening tag, then its body up to the end tag (which the caller's ExpectBlockEnd closes).
bool Parser::ParseBlock(std::initializer_list<std::string_view> ends, Body* body, std::string* end) {
  SkipOp(":");  // Jinja takes an optional colon, as in Python
  return ExpectBlockEnd() && ParseBody(ends, body, end);
}

bool Parser::ParseStatement(NodePtr* out) {
  if (Current().type != Tok::kName) return Fail("tag name expected");
  const std::string word = Current().text;
  const int loops = loops_;
  if (word == "for") return ParseFor(out);
  if (word == "if") return ParseIf(out);
  if (word == "set") return ParseSet(out);
  if (word == "macro") return ParseMacro(out);
  if (word == "call") return ParseCallBlock(out);
  if (word == "with") return ParseWith(out);
  if (word == "filter") return ParseFilterBlock(out);
  if (word == "generation") {
    *out = New(Kind::kScope);
    Next();
    loops_ = 0;
    const bool ok = ParseBlock({"endgeneration"}, &(*out)->body, nullptr);
    loops_ = loops;
    return ok;
  }
  if (word == "print") return ParsePrint(out);
  if (word == "break" || word == "continue") {
    *out = New(word == "break" ? Kind::kBreak : Kind::kContinue);
    if (loops_ == 0) return Fail(absl::StrCat("'", word, "' outside a loop"));
    Next();
    return true;
  }
  for (const char* known : {"include", "import", "from", "extends", "block", "autoescape", "do", "trans"}) {
    if (word == known) return Fail(absl::StrCat("the tag '", word, "' is not supported in chat templates"));
  }
  return Fail(absl::StrCat("encountered unknown tag '", word.substr(0, 60), "'"));
}

bool Parser::ParsePrint(NodePtr* out) {
  Next();
  *out = New(Kind::kOutput);
  NodePtr all = New(Kind::kConcat);
  while (Current().type != Tok::kBlockEnd) {
    if (!all->list.empty() && !ExpectOp(",")) return false;
    all->list.emplace_back();
    if (!ParseExpression(&all->list.back())) return false;
  }
  (*out)->a = std::move(all);
  return Grow((*out)->a.get());
}

bool Parser::ParseIf(NodePtr* out) {
  *out = New(Kind::kIf);
  Next();
  while (true) {
    (*out)->list.emplace_back();
    (*out)->bodies.emplace_back();
    std::string end;
    TupleRules rules;
    rules.conditional = false;
    if (!ParseTuple(rules, &(*out)->list.back())) return false;
    if (!ParseBlock({"elif", "else", "endif"}, &(*out)->bodies.back(), &end)) return false;
    if (end == "elif") continue;
    if (end == "endif") return true;
    (*out)->bodies.emplace_back();
    return ParseBlock({"endif"}, &(*out)->bodies.back(), nullptr);
  }
}

bool Parser::ParseFor(NodePtr* out) {
  *out = New(Kind::kFor);
  Node& node = **out;
  Next();
  if (!ParseTarget(/*until_in=*/true, &node.a) || !ExpectWord("in")) return false;
  TupleRules rules;
  rules.conditional = false;
  rules.end_word = "recursive";
  if (!ParseTuple(rules, &node.b)) return false;
  if (SkipWord("if") && !ParseExpression(&node.c)) return false;
  node.flag = SkipWord("recursive");
  ++loops_;
  std::string end;
  const bool ok = ParseBlock({"endfor", "else"}, &node.body, &end);
  --loops_;
  if (!ok) return false;
  return end == "endfor" || ParseBlock({"endfor"}, &node.other, nullptr);
}

bool Parser::ParseSet(NodePtr* out) {
  *out = New(Kind::kSet);
  Node& node = **out;
  Next();
  if (Current().type == Tok::kName && Look().type == Tok::kOperator && Look().text == ".") {
    node.a = New(Kind::kNamespaceTarget);
    node.a->name = program_->NameId(Current().text);
    Next();
    Next();
    std::string attribute;
    if (!ExpectName(&attribute)) return false;
    node.a->value = Value::Object(Type::kString, program_->String(attribute));
  } else if (!ParseTarget(/*until_in=*/false, &node.a)) {
    return false;
  }
  if (SkipOp("=")) return ParseTuple({}, &node.b);
  node.kind = Kind::kSetBlock;
  if (IsOp("|") && !ParseFilters(nullptr, /*inline_start=*/false, &node.c)) return false;
  const int loops = loops_;
  loops_ = 0;
  const bool ok = ParseBlock({"endset"}, &node.body, nullptr);
  loops_ = loops;
  return ok;
}

bool Parser::CheckTarget(Node* node) {
  if (node->kind == Kind::kTuple) {
    for (auto& child : node->list) {
      if (!CheckTarget(child.get())) return false;
    }
    return true;
  }
  if (node->kind == Kind::kName) return true;
  return Fail("cannot assign to this expression");
}

bool Parser::ParseTarget(bool until_in, NodePtr* out) {
  TupleRules rules;
  rules.simplified = true;
  if (until_in) rules.end_word = "in";
  return ParseTuple(rules, out) && CheckTarget(out->get());
}

bool Parser::ParseSignature(Node* node) {
  if (!ExpectOp("(")) return false;
  bool defaults = false;
  while (!IsOp(")")) {
    if (!node->params.empty() && !ExpectOp(",")) return false;
    std::string name;
    if (!ExpectName(&name)) return false;
    if (node->params.size() >= 200) return Fail("too many parameters");
    Param param;
    param.name = program_->NameId(name);
    if (SkipOp("=")) {
      if (!ParseExpression(&param.fallback)) return false;
      defaults = true;
    } else if (defaults) {
      return Fail("non-default argument follows default argument");
    }
    node->params.push_back(std::move(param));
  }
  return ExpectOp(")");
}

bool Parser::ParseMacroBody(Node* node, std::string_view end) {
  const int loops = loops_;
  loops_ = 0;
  macros_.push_back(node);
  const bool ok = ParseBlock({end}, &node->body, nullptr);
  macros_.pop_back();
  loops_ = loops;
  return ok;
}

bool Parser::ParseMacro(NodePtr* out) {
  *out = New(Kind::kMacro);
  Next();
  std::string name;
  if (!ExpectName(&name)) return false;
  (*out)->name = program_->NameId(name);
  return ParseSignature(out->get()) && ParseMacroBody(out->get(), "endmacro");
}

bool Parser::ParseCallBlock(NodePtr* out) {
  *out = New(Kind::kCallBlock);
  Next();
  (*out)->name = program_->NameId("caller");
  if (IsOp("(") && !ParseSignature(out->get())) return false;
  if (!ParseExpression(&(*out)->a)) return false;
  if ((*out)->a->kind != Kind::kCall) return Fail("a call block must name a call");
  return ParseMacroBody(out->get(), "endcall");
}

bool Parser::ParseWith(NodePtr* out) {
  *out = New(Kind::kWith);
  Next();
  while (Current().type != Tok::kBlockEnd) {
    auto& list = (*out)->list;
    if (!list.empty() && !ExpectOp(",")) return false;
    list.emplace_back();
    if (!ParseTarget(/*until_in=*/false, &list.back()) || !ExpectOp("=")) return false;
    list.emplace_back();
    if (!ParseExpression(&list.back())) return false;
  }
  return ParseBlock({"endwith"}, &(*out)->body, nullptr);
}

bool Parser::ParseFilterBlock(NodePtr* out) {
  *out = New(Kind::kFilterBlock);
  Next();
  if (!ParseFilters(nullptr, /*inline_start=*/true, &(*out)->a)) return false;
  const int loops = loops_;
  loops_ = 0;
  const bool ok = ParseBlock({"endfilter"}, &(*out)->body, nullptr);
  loops_ = loops;
  return ok;
}

absl::Status Parse(std::string_view source, int max_depth, Program* program) {
  SAGE_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  Parser parser(std::move(tokens), max_depth, program);
  parser.ParseProgram();
  return parser.status();
}

}  // namespace sage::jinja
