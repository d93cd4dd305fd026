// The objects of a rendering that have state or behaviour: scopes, loops, macros, namespaces, bound methods.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_value.h"

namespace sage::jinja {

// Variables of one block; the outermost variables live in the interpreter.
struct Scope : Obj {
  Ref<Scope> parent;
  std::vector<std::pair<int, Value>> variables;
  bool kept = false;  // the interpreter will empty it at the end
};

struct LoopObj : Obj {
  Value list;
  int64_t at = 0;
  int depth0 = 0;
  const Node* node = nullptr;  // of a recursive loop
  Ref<Scope> outer;            // where a recursive loop's body runs
  bool ended = false;
  bool has_last = false;
  Value last_changed;
  int64_t length() const { return static_cast<int64_t>(list.items().size()); }
};

struct MacroObj : Obj {
  std::string name;
  const Node* node = nullptr;
  Ref<Scope> scope;
};

// Only the interpreter's `mutables` keep the entries of a namespace from forming cycles.
struct NamespaceObj : Obj {
  DictObj attributes;
};

struct MethodObj : Obj {
  Value self;
};

struct RangeObj : ListObj {
  int64_t start = 0, stop = 0, step = 1;
};

struct CyclerObj : Obj {
  Value list;
  size_t at = 0;
};

struct JoinerObj : Obj {
  Value separator;
  bool used = false;
};

std::string RangeRepr(const Value& range);

}  // namespace sage::jinja
