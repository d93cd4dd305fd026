// The parsed form of a template: one node type, filled as its kind says.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/jinja_value.h"

namespace sage::jinja {

class Interpreter;
struct Args;
using FilterFn = bool (*)(Interpreter&, const Value& value, Args& args, Value* out);
using TestFn = bool (*)(Interpreter&, const Value& value, Args& args, bool* out);

enum class Kind : uint8_t {
  // Expressions
  kConst,      // value
  kName,       // name
  kList,       // list
  kTuple,      // list
  kDict,       // list: key, value, key, value ...
  kAttribute,  // a . value (a string)
  kSubscript,  // a [ b ]
  kSlice,      // list: start, stop, step (null where left out); only as `b` of kSubscript
  kCall,       // a ( list, keywords, star, star_star )
  kFilter,     // a | filter ( ... ); a is null in filter blocks
  kTest,       // a is test ( ... )
  kNot,        // a
  kNegate,
  kPlus,
  kArithmetic,   // list[0] ops[0] list[1] ops[1] ... from the left
  kConcat,       // list
  kCompare,      // list and ops, chained
  kAnd,          // list
  kOr,           // list
  kConditional,  // a if b else c (c may be null)
  // Assignment targets: kName, kTuple of targets, or
  kNamespaceTarget,  // name . value
  // Statements
  kText,         // value
  kOutput,       // a
  kIf,           // list: condition; bodies one longer when there is an else
  kFor,          // a = target, b = iterable, c = filter (may be null), body, other (else), flag: recursive
  kSet,          // a = target, b = value
  kSetBlock,     // a = target, c = filter chain (may be null), body
  kMacro,        // name, params, body, flags
  kCallBlock,    // a = call, params, body
  kFilterBlock,  // a = filter chain, body
  kWith,         // list: target, value, ...; body
  kScope,        // body in a scope of its own (generation)
  kBreak,
  kContinue,
};

enum class Op : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow, kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

struct Node;
using NodePtr = std::unique_ptr<Node>;
using Body = std::vector<NodePtr>;

struct Param {
  int name = 0;
  NodePtr fallback;  // null: none
};

struct Keyword {
  std::string name;
  NodePtr value;
};

struct Node {
  Kind kind = Kind::kConst;
  bool flag = false;
  bool uses_caller = false;  // macros: what the body names
  bool uses_kwargs = false;
  bool uses_varargs = false;
  int line = 0;
  int depth = 1;
  int name = -1;
  Value value;
  NodePtr a, b, c;
  std::vector<NodePtr> list;
  std::vector<Op> ops;
  std::vector<Keyword> keywords;
  NodePtr star, star_star;
  std::vector<Param> params;
  Body body, other;
  std::vector<Body> bodies;
  FilterFn filter = nullptr;  // null: no such filter, an error when it is reached
  TestFn test = nullptr;
};

struct Program {
  std::vector<std::unique_ptr<StrObj>> strings;  // first: the nodes' values look at them until they are gone
  Body body;
  std::vector<StrObj*> names;  // variable names by id
  std::unordered_map<std::string, int> name_ids;

  int NameId(const std::string& name);
  StrObj* String(std::string text);  // immortal
};

absl::Status Parse(std::string_view source, int max_depth, Program* program);

FilterFn FindFilter(const std::string& name);
TestFn FindTest(const std::string& name);

}  // namespace sage::jinja
