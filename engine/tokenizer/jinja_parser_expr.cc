// The expression grammar. Operator chains become flat nodes, so a long sum nests no deeper than a short one.
#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_parser.h"

namespace sage::jinja {
namespace {

struct OpName {
  std::string_view text;
  Op op;
};
constexpr OpName kComparisons[] = {{"==", Op::kEq}, {"!=", Op::kNe}, {"<", Op::kLt},
                                   {"<=", Op::kLe}, {">", Op::kGt},  {">=", Op::kGe}};
constexpr OpName kProducts[] = {{"*", Op::kMul}, {"/", Op::kDiv}, {"//", Op::kFloorDiv}, {"%", Op::kMod}};

constexpr size_t kMaxKeywords = 200;  // each is compared with the others

}  // namespace

Node* Parser::Wrap(NodePtr* node, Kind kind) {
  NodePtr outer = New(kind);
  outer->line = (*node)->line;
  outer->list.push_back(std::move(*node));
  *node = std::move(outer);
  return node->get();
}

bool Parser::TupleEnds(const TupleRules& rules) const {
  const Tok type = Current().type;
  if (type == Tok::kVariableEnd || type == Tok::kBlockEnd || IsOp(")")) return true;
  return !rules.end_word.empty() && IsWord(rules.end_word);
}

bool Parser::ParseTuple(const TupleRules& rules, NodePtr* out) {
  NodePtr tuple = New(Kind::kTuple);
  bool is_tuple = false;
  while (true) {
    if (!tuple->list.empty() && !ExpectOp(",")) return false;
    if (TupleEnds(rules)) break;
    NodePtr item;
    if (!(rules.simplified ? ParsePrimary(&item) : ParseExpression(&item, rules.conditional))) return false;
    tuple->list.push_back(std::move(item));
    if (!IsOp(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!tuple->list.empty()) {
      *out = std::move(tuple->list[0]);
      return true;
    }
    if (!rules.parentheses) return Fail(absl::StrCat("expected an expression, got '", Describe(), "'"));
  }
  *out = std::move(tuple);
  return Grow(out->get());
}

bool Parser::ParseExpression(NodePtr* out, bool conditional) {
  Nesting nesting(this);
  if (!nesting.ok() || !ParseOr(out)) return false;
  if (!conditional) return true;
  while (IsWord("if")) {
    NodePtr node = New(Kind::kConditional);
    Next();
    node->a = std::move(*out);
    if (!ParseOr(&node->b)) return false;
    if (SkipWord("else") && !ParseExpression(&node->c)) return false;
    if (!Grow(node.get())) return false;
    *out = std::move(node);
  }
  return true;
}

bool Parser::ParseOr(NodePtr* out) {
  if (!ParseAnd(out)) return false;
  if (!IsWord("or")) return true;
  Node* node = Wrap(out, Kind::kOr);
  while (SkipWord("or")) {
    node->list.emplace_back();
    if (!ParseAnd(&node->list.back())) return false;
  }
  return Grow(node);
}

bool Parser::ParseAnd(NodePtr* out) {
  if (!ParseNot(out)) return false;
  if (!IsWord("and")) return true;
  Node* node = Wrap(out, Kind::kAnd);
  while (SkipWord("and")) {
    node->list.emplace_back();
    if (!ParseNot(&node->list.back())) return false;
  }
  return Grow(node);
}

bool Parser::ParseNot(NodePtr* out) {
  if (!IsWord("not")) return ParseCompare(out);
  Nesting nesting(this);
  if (!nesting.ok()) return false;
  *out = New(Kind::kNot);
  Next();
  return ParseNot(&(*out)->a) && Grow(out->get());
}

bool Parser::ParseCompare(NodePtr* out) {
  if (!ParseSum(out)) return false;
  Node* node = nullptr;
  while (true) {
    Op op = Op::kEq;
    bool found = false;
    for (const OpName& candidate : kComparisons) {
      if (IsOp(candidate.text)) {
        op = candidate.op;
        found = true;
      }
    }
    if (IsWord("in")) {
      op = Op::kIn;
      found = true;
    } else if (IsWord("not") && Look().type == Tok::kName && Look().text == "in") {
      op = Op::kNotIn;
      found = true;
      Next();
    }
    if (!found) break;
    Next();
    if (node == nullptr) node = Wrap(out, Kind::kCompare);
    node->ops.push_back(op);
    node->list.emplace_back();
    if (!ParseSum(&node->list.back())) return false;
  }
  return node == nullptr || Grow(node);
}

bool Parser::ParseSum(NodePtr* out) {
  if (!ParseConcat(out)) return false;
  Node* node = nullptr;
  while (IsOp("+") || IsOp("-")) {
    if (node == nullptr) node = Wrap(out, Kind::kArithmetic);
    node->ops.push_back(IsOp("+") ? Op::kAdd : Op::kSub);
    Next();
    node->list.emplace_back();
    if (!ParseConcat(&node->list.back())) return false;
  }
  return node == nullptr || Grow(node);
}

bool Parser::ParseConcat(NodePtr* out) {
  if (!ParseProduct(out)) return false;
  if (!IsOp("~")) return true;
  Node* node = Wrap(out, Kind::kConcat);
  while (SkipOp("~")) {
    node->list.emplace_back();
    if (!ParseProduct(&node->list.back())) return false;
  }
  return Grow(node);
}

bool Parser::ParseProduct(NodePtr* out) {
  if (!ParsePower(out)) return false;
  Node* node = nullptr;
  while (true) {
    const OpName* found = nullptr;
    for (const OpName& candidate : kProducts) {
      if (IsOp(candidate.text)) found = &candidate;
    }
    if (found == nullptr) break;
    Next();
    if (node == nullptr) node = Wrap(out, Kind::kArithmetic);
    node->ops.push_back(found->op);
    node->list.emplace_back();
    if (!ParsePower(&node->list.back())) return false;
  }
  return node == nullptr || Grow(node);
}

bool Parser::ParsePower(NodePtr* out) {
  if (!ParseUnary(out)) return false;
  Node* node = nullptr;
  while (SkipOp("**")) {
    if (node == nullptr) node = Wrap(out, Kind::kArithmetic);
    node->ops.push_back(Op::kPow);
    node->list.emplace_back();
    if (!ParseUnary(&node->list.back())) return false;
  }
  return node == nullptr || Grow(node);
}

bool Parser::ParseUnary(NodePtr* out, bool with_filters) {
  Nesting nesting(this);
  if (!nesting.ok()) return false;
  if (IsOp("-") || IsOp("+")) {
    *out = New(IsOp("-") ? Kind::kNegate : Kind::kPlus);
    Next();
    if (!ParseUnary(&(*out)->a, /*with_filters=*/false) || !Grow(out->get())) return false;
  } else if (!ParsePrimary(out)) {
    return false;
  }
  return ParsePostfix(out) && (!with_filters || ParseFilterExpression(out));
}

bool Parser::ParseNamed(NodePtr* out) {
  const std::string& word = Current().text;
  *out = New(Kind::kConst);
  if (word == "true" || word == "True" || word == "false" || word == "False") {
    (*out)->value = Value::Bool(word[0] == 't' || word[0] == 'T');
  } else if (word == "none" || word == "None") {
    (*out)->value = Value::None();
  } else {
    (*out)->kind = Kind::kName;
    (*out)->name = program_->NameId(word);
    for (Node* macro : macros_) {
      if (word == "caller") macro->uses_caller = true;
      if (word == "kwargs") macro->uses_kwargs = true;
      if (word == "varargs") macro->uses_varargs = true;
    }
  }
  Next();
  return true;
}

bool Parser::ParsePrimary(NodePtr* out) {
  const Token& token = Current();
  if (token.type == Tok::kName) return ParseNamed(out);
  if (token.type == Tok::kString) {
    *out = New(Kind::kConst);
    std::string text;
    while (Current().type == Tok::kString) {
      text += Current().text;
      Next();
    }
    (*out)->value = Value::Object(Type::kString, program_->String(std::move(text)));
    return true;
  }
  if (token.type == Tok::kInteger || token.type == Tok::kFloat) {
    *out = New(Kind::kConst);
    (*out)->value = token.type == Tok::kInteger ? Value::Int(token.integer) : Value::Float(token.number);
    Next();
    return true;
  }
  Nesting nesting(this);  // targets reach here without passing ParseExpression
  if (!nesting.ok()) return false;
  if (SkipOp("(")) {
    TupleRules rules;
    rules.parentheses = true;
    return ParseTuple(rules, out) && ExpectOp(")");
  }
  if (IsOp("[")) return ParseListLiteral(out);
  if (IsOp("{")) return ParseDictLiteral(out);
  return Fail(absl::StrCat("unexpected '", Describe(), "'"));
}

bool Parser::ParseListLiteral(NodePtr* out) {
  *out = New(Kind::kList);
  Next();
  auto& list = (*out)->list;
  while (!IsOp("]")) {
    if (!list.empty() && !ExpectOp(",")) return false;
    if (IsOp("]")) break;
    list.emplace_back();
    if (!ParseExpression(&list.back())) return false;
  }
  return ExpectOp("]") && Grow(out->get());
}

bool Parser::ParseDictLiteral(NodePtr* out) {
  *out = New(Kind::kDict);
  Next();
  auto& list = (*out)->list;
  while (!IsOp("}")) {
    if (!list.empty() && !ExpectOp(",")) return false;
    if (IsOp("}")) break;
    list.emplace_back();
    if (!ParseExpression(&list.back()) || !ExpectOp(":")) return false;
    list.emplace_back();
    if (!ParseExpression(&list.back())) return false;
  }
  return ExpectOp("}") && Grow(out->get());
}

bool Parser::ParsePostfix(NodePtr* node) {
  while (true) {
    if (IsOp(".") || IsOp("[")) {
      if (!ParseSubscript(node)) return false;
    } else if (IsOp("(")) {
      if (!ParseCall(node)) return false;
    } else {
      return true;
    }
  }
}

bool Parser::ParseFilterExpression(NodePtr* node) {
  while (true) {
    if (IsOp("|")) {
      NodePtr input = std::move(*node);
      if (!ParseFilters(std::move(input), /*inline_start=*/false, node)) return false;
    } else if (IsWord("is")) {
      if (!ParseTest(node)) return false;
    } else if (IsOp("(")) {
      if (!ParseCall(node)) return false;
    } else {
      return true;
    }
  }
}

bool Parser::ParseSubscript(NodePtr* node) {
  NodePtr outer = New(Kind::kSubscript);
  outer->a = std::move(*node);
  if (SkipOp(".")) {
    if (Current().type == Tok::kName) {
      outer->kind = Kind::kAttribute;
      outer->value = Value::Object(Type::kString, program_->String(Current().text));
    } else if (Current().type == Tok::kInteger) {
      outer->b = New(Kind::kConst);
      outer->b->value = Value::Int(Current().integer);
    } else {
      return Fail("expected name or number");
    }
    Next();
  } else {
    Next();  // [
    NodePtr args = New(Kind::kTuple);
    while (!IsOp("]")) {
      if (!args->list.empty() && !ExpectOp(",")) return false;
      args->list.emplace_back();
      if (!ParseSubscribed(&args->list.back())) return false;
    }
    Next();
    if (args->list.size() == 1) {
      outer->b = std::move(args->list[0]);
    } else {
      for (const auto& arg : args->list) {
        if (arg->kind == Kind::kSlice) return Fail("a slice must stand alone in a subscript");
      }
      if (!Grow(args.get())) return false;
      outer->b = std::move(args);
    }
  }
  *node = std::move(outer);
  return Grow(node->get());
}

bool Parser::ParseSubscribed(NodePtr* out) {
  NodePtr start;
  if (!IsOp(":")) {
    if (!ParseExpression(&start)) return false;
    if (!IsOp(":")) {
      *out = std::move(start);
      return true;
    }
  }
  *out = New(Kind::kSlice);
  Next();
  auto& list = (*out)->list;
  list.resize(3);
  list[0] = std::move(start);
  const auto open = [&] { return !IsOp("]") && !IsOp(","); };
  if (!IsOp(":") && open() && !ParseExpression(&list[1])) return false;
  if (SkipOp(":") && open() && !ParseExpression(&list[2])) return false;
  return Grow(out->get());
}

bool Parser::ParseCall(NodePtr* node) {
  NodePtr call = New(Kind::kCall);
  call->a = std::move(*node);
  if (!ParseCallArgs(call.get())) return false;
  *node = std::move(call);
  return Grow(node->get());
}

bool Parser::ParseCallArgs(Node* node) {
  Next();  // (
  bool comma = false;
  const auto invalid = [&] { return Fail("invalid syntax for function call expression"); };
  while (!IsOp(")")) {
    if (comma) {
      if (!ExpectOp(",")) return false;
      if (IsOp(")")) break;
    }
    comma = true;
    if (IsOp("*")) {
      if (node->star != nullptr || node->star_star != nullptr) return invalid();
      Next();
      if (!ParseExpression(&node->star)) return false;
    } else if (IsOp("**")) {
      if (node->star_star != nullptr) return invalid();
      Next();
      if (!ParseExpression(&node->star_star)) return false;
    } else if (Current().type == Tok::kName && Look().type == Tok::kOperator && Look().text == "=") {
      if (node->star_star != nullptr) return invalid();
      if (node->keywords.size() >= kMaxKeywords) return Fail("too many keyword arguments");
      Keyword keyword;
      keyword.name = Current().text;
      for (const Keyword& other : node->keywords) {
        if (other.name == keyword.name) return Fail("keyword argument repeated");
      }
      Next();
      Next();
      if (!ParseExpression(&keyword.value)) return false;
      node->keywords.push_back(std::move(keyword));
    } else {
      if (node->star != nullptr || node->star_star != nullptr || !node->keywords.empty()) return invalid();
      node->list.emplace_back();
      if (!ParseExpression(&node->list.back())) return false;
    }
  }
  return ExpectOp(")");
}

bool Parser::ParseDottedName(std::string* name) {
  if (!ExpectName(name)) return false;
  while (SkipOp(".")) {
    std::string more;
    if (!ExpectName(&more)) return false;
    absl::StrAppend(name, ".", more);
  }
  return true;
}

bool Parser::ParseFilters(NodePtr input, bool inline_start, NodePtr* out) {
  *out = std::move(input);
  while (inline_start || SkipOp("|")) {
    inline_start = false;
    NodePtr filter = New(Kind::kFilter);
    std::string name;
    if (!ParseDottedName(&name)) return false;
    filter->filter = FindFilter(name);
    filter->value = Value::Object(Type::kString, program_->String(name));
    filter->a = std::move(*out);
    if (IsOp("(") && !ParseCallArgs(filter.get())) return false;
    if (!Grow(filter.get())) return false;
    *out = std::move(filter);
  }
  return true;
}

bool Parser::ParseTest(NodePtr* node) {
  NodePtr test = New(Kind::kTest);
  Next();  // is
  const bool negated = SkipWord("not");
  std::string name;
  if (!ParseDottedName(&name)) return false;
  test->test = FindTest(name);
  test->value = Value::Object(Type::kString, program_->String(name));
  test->a = std::move(*node);
  const Tok type = Current().type;
  if (IsOp("(")) {
    if (!ParseCallArgs(test.get())) return false;
  } else if (type == Tok::kString || type == Tok::kInteger || type == Tok::kFloat || IsOp("[") || IsOp("{") ||
             (type == Tok::kName && !IsWord("else") && !IsWord("or") && !IsWord("and"))) {
    if (IsWord("is")) return Fail("you cannot chain multiple tests with is");
    test->list.emplace_back();
    if (!ParsePrimary(&test->list.back()) || !ParsePostfix(&test->list.back())) return false;
  }
  if (!Grow(test.get())) return false;
  *node = std::move(test);
  if (negated) {
    NodePtr outer = New(Kind::kNot);
    outer->a = std::move(*node);
    *node = std::move(outer);
    return Grow(node->get());
  }
  return true;
}

}  // namespace sage::jinja
