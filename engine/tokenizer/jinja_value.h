// The values of a chat template: Python's objects as far as templates see them, with bounded size and nesting.
//
// Everything but namespaces, loops, cyclers and scopes is immutable once made, so a value cannot contain itself except
// through one of those; the interpreter empties the mutable ones when rendering ends, which breaks every cycle.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace sage::jinja {

enum class Type : uint8_t {
  kAbsent,  // no value: an unset variable or a macro argument that was not passed
  kUndefined,
  kNone,
  kBool,
  kInt,
  kBigUint,  // an integer of the JSON context in [2^63, 2^64): shown and compared, never computed with
  kFloat,
  kString,
  kList,
  kTuple,
  kRange,
  kGenerator,
  kItems,  // dict.items(), .keys(), .values()
  kKeys,
  kDictValues,
  kDict,
  kNamespace,
  kLoop,
  kMacro,
  kMethod,
  kFunction,
  kCycler,
  kJoiner,
};

// What one rendering may still use. Memory is what live values hold; steps also count the bytes and items touched.
struct Budget {
  int64_t live = 0;
  int64_t max_live = 0;
  int64_t steps = 0;
  int64_t max_steps = 0;
  size_t max_string = 0;
  size_t max_items = 0;
};

// Reference-counted without atomics: a value belongs to one rendering. Objects of a compiled template are `immortal`,
// so that threads can share them without touching the count.
struct Obj {
  Obj() = default;
  Obj(const Obj&) = delete;
  Obj& operator=(const Obj&) = delete;
  virtual ~Obj() {
    if (budget != nullptr) budget->live -= charged;
  }
  uint32_t refs = 0;
  int64_t weight = 1;  // values within, counted as often as they are reachable: what a walk costs
  uint16_t depth = 0;  // nesting of immutable containers, bounded so that no walk or destructor recurses far
  bool immortal = false;
  Budget* budget = nullptr;
  int64_t charged = 0;
};

template <typename T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T* p) : p_(p) { Take(); }
  Ref(const Ref& o) : p_(o.p_) { Take(); }
  Ref(Ref&& o) noexcept : p_(o.p_) { o.p_ = nullptr; }
  Ref& operator=(Ref o) noexcept {
    std::swap(p_, o.p_);
    return *this;
  }
  ~Ref() {
    if (p_ != nullptr && !p_->immortal && --p_->refs == 0) delete p_;
  }
  T* get() const { return p_; }
  T* operator->() const { return p_; }
  explicit operator bool() const { return p_ != nullptr; }

 private:
  void Take() {
    if (p_ != nullptr && !p_->immortal) ++p_->refs;
  }
  T* p_ = nullptr;
};

struct StrObj : Obj {
  explicit StrObj(std::string text);
  std::string s;
  size_t chars = 0;  // code points; equal to s.size() exactly for ASCII text
  bool ascii() const { return chars == s.size(); }
};

class Value;
struct ListObj;
struct DictObj;

class Value {
 public:
  Value() = default;  // absent
  static Value None() { return Value(Type::kNone); }
  static Value Bool(bool b) {
    Value v(Type::kBool);
    v.i_ = b ? 1 : 0;
    return v;
  }
  static Value Int(int64_t i) {
    Value v(Type::kInt);
    v.i_ = i;
    return v;
  }
  static Value BigUint(uint64_t u) {
    Value v(Type::kBigUint);
    v.i_ = static_cast<int64_t>(u);
    return v;
  }
  static Value Float(double d) {
    Value v(Type::kFloat);
    v.d_ = d;
    return v;
  }
  static Value Object(Type type, Obj* obj, int64_t i = 0) {
    Value v(type);
    v.i_ = i;
    v.obj_ = Ref<Obj>(obj);
    return v;
  }
  static Value Plain(Type type, int64_t i) { return Object(type, nullptr, i); }
  // An undefined name, or (with `owner`) an attribute that a value of that type lacks; kAbsent with a StrObj: `name` is
  // the whole message.
  static Value Undefined(StrObj* name, Type owner = Type::kUndefined) {
    return Object(Type::kUndefined, name, static_cast<int64_t>(owner));
  }

  Type type() const { return type_; }
  bool Is(Type t) const { return type_ == t; }
  bool present() const { return type_ != Type::kAbsent; }
  bool is_string() const { return type_ == Type::kString; }
  bool is_undefined() const { return type_ == Type::kUndefined; }
  bool is_none() const { return type_ == Type::kNone; }
  bool is_integer() const { return type_ == Type::kInt || type_ == Type::kBool; }
  bool is_number() const { return is_integer() || type_ == Type::kFloat || type_ == Type::kBigUint; }
  bool is_sequence() const { return type_ == Type::kList || type_ == Type::kTuple || type_ == Type::kRange; }
  // Anything that carries a ListObj.
  bool is_listlike() const { return type_ >= Type::kList && type_ <= Type::kDictValues; }

  bool b() const { return i_ != 0; }
  int64_t i() const { return i_; }
  uint64_t u() const { return static_cast<uint64_t>(i_); }
  double d() const { return d_; }
  double AsDouble() const {
    if (type_ == Type::kFloat) return d_;
    return type_ == Type::kBigUint ? static_cast<double>(u()) : static_cast<double>(i_);
  }
  Obj* obj() const { return obj_.get(); }
  const StrObj& str() const { return *static_cast<const StrObj*>(obj_.get()); }
  const std::string& s() const { return str().s; }
  const std::vector<Value>& items() const;
  const DictObj& dict() const;

  // Strings that `safe` and `escape` made (Markup); 2-tuples that `groupby` made.
  bool special() const { return special_; }
  void set_special(bool on) { special_ = on; }

 private:
  explicit Value(Type t) : type_(t) {}
  Type type_ = Type::kAbsent;
  bool special_ = false;
  union {
    int64_t i_ = 0;
    double d_;
  };
  Ref<Obj> obj_;
};

struct ListObj : Obj {
  std::vector<Value> items;
  bool consumed = false;  // generators
};

// Insertion-ordered; keys are compared as Python does (1 == 1.0 == True).
struct DictObj : Obj {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_multimap<size_t, uint32_t> index;  // filled from kLinear entries on
  static constexpr size_t kLinear = 8;

  const Value* Find(const Value& key) const;
  const Value* FindText(std::string_view key) const;
  void Set(const Value& key, Value value);

 private:
  void Append(const Value& key, Value value);
};

inline const std::vector<Value>& Value::items() const { return static_cast<const ListObj*>(obj_.get())->items; }
inline const DictObj& Value::dict() const { return *static_cast<const DictObj*>(obj_.get()); }

inline constexpr int kMaxValueDepth = 300;
inline constexpr int64_t kMaxValueWeight = 64 << 20;

// What comparing or hashing `v` costs in steps.
inline int64_t Weight(const Value& v) {
  if (v.is_string()) return 1 + static_cast<int64_t>(v.s().size() / 64);
  return v.obj() == nullptr ? 1 : v.obj()->weight;
}

// The error state and the budget of one rendering. Every operation that can fail returns false after `Fail`.
class Runtime {
 public:
  bool Fail(std::string_view message);      // CHAT_TEMPLATE_ERROR
  bool Raise(std::string_view message);     // CHAT_TEMPLATE_RAISED
  bool LimitHit(std::string_view message);  // CHAT_TEMPLATE_LIMIT
  const absl::Status& status() const { return status_; }
  bool failed() const { return !status_.ok(); }

  // n more nodes, items or comparisons; bytes are charged through StepBytes.
  bool Step(int64_t n = 1) {
    budget.steps += n;
    return budget.steps <= budget.max_steps || LimitHit("steps");
  }
  bool StepBytes(size_t bytes) { return Step(static_cast<int64_t>(bytes / 64)); }
  // To be asked before text of `bytes` or a list of `items` is built.
  bool CanText(size_t bytes) { return bytes <= budget.max_string || LimitHit("length of a text"); }
  bool CanItems(size_t items) { return items <= budget.max_items || LimitHit("items of a list"); }

  bool Text(std::string text, Value* out);
  bool List(std::vector<Value> items, Value* out, Type type = Type::kList, int64_t extra = 0);
  bool Dict(Ref<DictObj> dict, Value* out);  // charges a filled dict
  bool Own(Obj* obj, int64_t bytes);         // charges an object of another kind

  Budget budget;
  int line = 0;  // of the statement being run, for messages

 private:
  bool Error(std::string_view reason, std::string_view message);
  absl::Status status_;
};

std::string_view TypeName(Type type);  // as Python's error messages name it: "str", "dict"
std::string UndefinedMessage(const Value& v);
bool FailUndefined(Runtime& rt, const Value& v);

bool Truthy(const Value& v);
bool Equals(const Value& a, const Value& b);
bool Hashable(const Value& v);
// a < b; false with an error status for types that Python does not order.
bool Less(Runtime& rt, const Value& a, const Value& b, bool* out, std::string_view op = "<");
// len(v)
bool Length(Runtime& rt, const Value& v, int64_t* out);
// list(v): a list's own items, a dict's keys, a string's characters; generators are used up.
bool Iterate(Runtime& rt, const Value& v, Value* out_list);
bool Contains(Runtime& rt, const Value& container, const Value& item, bool* out);

// str(v) and repr(v) appended to `out`, within the text limit.
bool AppendStr(Runtime& rt, const Value& v, std::string* out);
bool AppendRepr(Runtime& rt, const Value& v, std::string* out, int depth = 0);
bool ToText(Runtime& rt, const Value& v, Value* out);  // str(v); strings stay themselves

}  // namespace sage::jinja
