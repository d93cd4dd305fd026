// A recursive-descent parser over the tokens of a template; nesting is bounded, and every failure carries the line.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_lexer.h"

namespace sage::jinja {

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth, Program* program)
      : tokens_(std::move(tokens)), max_depth_(max_depth), program_(program) {}
  bool ParseProgram();
  const absl::Status& status() const { return status_; }

 private:
  struct TupleRules {
    bool simplified = false;   // names and literals only: assignment targets
    bool conditional = true;   // whether `x if y` may appear
    bool parentheses = false;  // an empty tuple is allowed
    std::string_view end_word;
  };
  // Counts how deep the parser's own calls are nested.
  class Nesting {
   public:
    explicit Nesting(Parser* parser) : parser_(parser) { ++parser_->depth_; }
    ~Nesting() { --parser_->depth_; }
    bool ok() const { return parser_->depth_ <= parser_->max_depth_ || parser_->Fail("nesting is too deep"); }

   private:
    Parser* parser_;
  };

  const Token& Current() const { return tokens_[at_]; }
  const Token& Look() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  void Next() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool IsOp(std::string_view op) const { return Current().type == Tok::kOperator && Current().text == op; }
  bool IsWord(std::string_view word) const { return Current().type == Tok::kName && Current().text == word; }
  bool SkipOp(std::string_view op) { return IsOp(op) && (Next(), true); }
  bool SkipWord(std::string_view word) { return IsWord(word) && (Next(), true); }
  bool ExpectOp(std::string_view op);
  bool ExpectWord(std::string_view word);
  bool ExpectName(std::string* name);
  bool ExpectBlockEnd();
  std::string Describe() const;
  bool Fail(std::string_view message);
  NodePtr New(Kind kind) const;
  bool Grow(Node* node);  // sets the depth from the children; fails past the limit

  bool ParseBody(std::initializer_list<std::string_view> ends, Body* body, std::string* end);
  bool ParseBlock(std::initializer_list<std::string_view> ends, Body* body, std::string* end);
  bool ParseStatement(NodePtr* out);
  bool ParsePrint(NodePtr* out);
  bool ParseIf(NodePtr* out);
  bool ParseFor(NodePtr* out);
  bool ParseSet(NodePtr* out);
  bool ParseMacro(NodePtr* out);
  bool ParseCallBlock(NodePtr* out);
  bool ParseWith(NodePtr* out);
  bool ParseFilterBlock(NodePtr* out);
  bool ParseSignature(Node* node);
  bool ParseMacroBody(Node* node, std::string_view end);
  bool ParseTarget(bool until_in, NodePtr* out);
  bool CheckTarget(Node* node);

  bool ParseTuple(const TupleRules& rules, NodePtr* out);
  bool TupleEnds(const TupleRules& rules) const;
  bool ParseExpression(NodePtr* out, bool conditional = true);
  bool ParseOr(NodePtr* out);
  bool ParseAnd(NodePtr* out);
  bool ParseNot(NodePtr* out);
  bool ParseCompare(NodePtr* out);
  bool ParseSum(NodePtr* out);
  bool ParseConcat(NodePtr* out);
  bool ParseProduct(NodePtr* out);
  bool ParsePower(NodePtr* out);
  bool ParseUnary(NodePtr* out, bool with_filters = true);
  bool ParsePrimary(NodePtr* out);
  bool ParseNamed(NodePtr* out);
  bool ParseListLiteral(NodePtr* out);
  bool ParseDictLiteral(NodePtr* out);
  bool ParsePostfix(NodePtr* node);
  bool ParseFilterExpression(NodePtr* node);
  bool ParseSubscript(NodePtr* node);
  bool ParseSubscribed(NodePtr* out);
  bool ParseCall(NodePtr* node);
  bool ParseCallArgs(Node* node);
  bool ParseFilters(NodePtr input, bool inline_start, NodePtr* out);
  bool ParseTest(NodePtr* node);
  bool ParseDottedName(std::string* name);
  // Wraps *node as the first child of a new node of `kind`.
  Node* Wrap(NodePtr* node, Kind kind);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int max_depth_;
  int loops_ = 0;  // enclosing loops that break and continue may leave
  std::vector<Node*> macros_;
  Program* program_;
  absl::Status status_;
};

}  // namespace sage::jinja
