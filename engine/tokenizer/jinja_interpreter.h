// Runs a parsed template. One Interpreter is one rendering; it holds the variables, the output and the budget.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/json.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_objects.h"
#include "engine/tokenizer/jinja_value.h"

namespace sage::jinja {

// The arguments of a call, a filter or a test.
struct Args {
  std::vector<Value> list;
  std::vector<std::pair<std::string, Value>> keywords;
};

class Interpreter : public Runtime {
 public:
  class Depth;

  Interpreter(const Program& program, const ChatTemplateLimits& limits, int64_t now);
  ~Interpreter();

  bool Run(const OrderedJson& context);
  std::string TakeOutput() { return std::move(output_); }

  // Sorts the arguments under their names; `out` has one entry a name, null where nothing was passed. Fails for excess
  // or unknown arguments and when one of the first `required` is missing.
  bool Bind(std::string_view function, const Args& args, std::initializer_list<const char*> names, size_t required,
            const Value** out);
  bool BindInt(const Value* arg, int64_t fallback, int64_t* out);  // null gives the fallback
  bool BindText(std::string_view function, const Value* arg, std::string_view* out);

  bool Attribute(const Value& object, const Value& name, Value* out);  // object.name
  bool Item(const Value& object, const Value& key, Value* out);        // object[key]
  bool Call(const Value& callee, Args& args, Value* out);
  bool CallMethod(const Value& self, int64_t method, Args& args, Value* out);
  bool Binary(Op op, const Value& a, const Value& b, Value* out);
  bool Compare(Op op, const Value& a, const Value& b, bool* out);
  bool Slice(const Value& object, const Value& start, const Value& stop, const Value& step, Value* out);
  // Counts the nesting of an object that holds `inner`; fails past the limit.
  bool CanHold(const Value& inner, Obj* outer) {
    if (inner.obj() == nullptr) return true;
    outer->depth = inner.obj()->depth + 1;
    return outer->depth <= kMaxValueDepth || LimitHit("nesting of values");
  }
  void Keep(Obj* obj) { mutables_.emplace_back(obj); }
  int64_t now() const { return now_; }

 private:
  enum class Flow { kNext, kError, kBreak, kContinue };

  bool Eval(const Node& node, Value* out);
  bool EvalName(int name, Value* out);
  bool EvalSequence(const Node& node, Value* out);
  bool EvalDict(const Node& node, Value* out);
  bool EvalArithmetic(const Node& node, Value* out);
  bool EvalConcat(const Node& node, Value* out);
  bool EvalCompare(const Node& node, Value* out);
  bool EvalLogic(const Node& node, Value* out);
  bool EvalConditional(const Node& node, Value* out);
  bool EvalSubscript(const Node& node, Value* out);
  bool EvalSlice(const Node& node, const Value& object, Value* out);
  bool EvalCall(const Node& node, const Value* caller, Value* out);
  bool EvalFilter(const Node& node, const Value* input, Value* out);
  bool EvalFilterChain(const Node& node, Value input, Value* out);
  bool EvalTest(const Node& node, Value* out);
  bool EvalArgs(const Node& node, Args* args);
  bool EvalSign(const Node& node, Value* out);

  Flow Exec(const Node& node);
  Flow ExecBody(const Body& body);
  Flow ExecIf(const Node& node);
  Flow ExecFor(const Node& node, const Value& iterable, int depth0);
  bool FilterItems(const Node& node, Value* list);
  Flow ExecLoop(const Node& node, Value list, int depth0);
  Flow ExecSetBlock(const Node& node);
  Flow ExecMacro(const Node& node);
  Flow ExecCallBlock(const Node& node);
  Flow ExecFilterBlock(const Node& node);
  Flow ExecWith(const Node& node);
  Flow ExecScoped(const Body& body);
  bool Assign(const Node& target, const Value& value);
  bool Unpack(const Node& target, const Value& value);
  void SetVariable(int name, Value value);
  bool Write(const Value& value);
  bool WriteText(std::string_view text);
  // Runs `body` in a scope of its own with the output caught in `text`.
  bool Capture(const Body& body, Value* text);

  Value MakeMacro(const Node& node, std::string name);
  bool CallMacro(const MacroObj& macro, Args& args, Value* out);
  bool BindMacro(const MacroObj& macro, Args& args, Scope* scope);
  bool CallFunction(int64_t function, Args& args, Value* out);
  bool CallRange(Args& args, Value* out);
  bool CallDict(Args& args, Value* out, bool as_namespace);
  bool CallClock(Args& args, Value* out);
  bool CallLoop(LoopObj* loop, Args& args, Value* out);
  bool LoopAttribute(LoopObj* loop, std::string_view name, Value* out);
  bool LoopMethod(LoopObj* loop, int64_t method, Args& args, Value* out);
  bool SequenceItem(const Value& object, const Value& key, Value* out, bool* found);
  void LoadVariables(const OrderedJson& context);

  const Program& program_;
  int64_t now_;
  int max_depth_;
  int depth_ = 0;
  int calls_ = 0;
  std::vector<Value> globals_;
  Ref<Scope> scope_;  // null: the outermost
  std::vector<Ref<Obj>> mutables_;
  std::string output_;
  std::string* out_ = &output_;
  size_t max_output_;
};

// Counts the nesting of Eval and Exec.
class Interpreter::Depth {
 public:
  explicit Depth(Interpreter* in) : in_(in) { ++in_->depth_; }
  ~Depth() { --in_->depth_; }
  bool ok() const { return in_->depth_ <= in_->max_depth_ * 5 || in_->LimitHit("nesting"); }

 private:
  Interpreter* in_;
};

// A method of a string, list or dict by its name, or -1. Methods that change their object exist but raise.
int64_t FindMethod(Type type, std::string_view name);
int64_t FindStateMethod(Type type, std::string_view name);  // of loops and cyclers
// A global function by its name, or -1.
int64_t FindFunction(std::string_view name);

bool DictView(Runtime& rt, const Value& dict, Type type, Value* out);
// str.replace; a negative count replaces all.
bool ReplaceText(Runtime& rt, std::string_view text, std::string_view from, std::string_view to, int64_t count,
                 Value* out);

// JSON to values (bounded in depth) and back.
bool FromJson(Runtime& rt, const OrderedJson& json, Value* out, int depth = 0);
struct JsonStyle {
  std::string indent;  // one level
  bool pretty = false;
  bool ascii = false;
  bool sort_keys = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
bool AppendJson(Runtime& rt, const Value& v, const JsonStyle& style, std::string* out, int depth = 0);

// "%s ..." % values and "{} ...".format(...)
bool FormatPercent(Interpreter& in, std::string_view format, const Args& args, Value* out);
bool FormatBraces(Interpreter& in, std::string_view format, const Args& args, Value* out);

}  // namespace sage::jinja
