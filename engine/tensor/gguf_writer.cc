// Serializes keys and tensor directory of a GGUF file.
#include "engine/tensor/gguf_writer.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr size_t kMaxKeyBytes = 65535, kMaxTensorNameBytes = 63;  // GGML_MAX_NAME with its end mark

using enum GgufValue::Type;

// Little-endian whatever the machine is.
void Put(uint64_t value, int bytes, std::string& out) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
}

void PutText(std::string_view text, std::string& out) {
  Put(text.size(), 8, out);
  out.append(text);
}

uint32_t BitsOf(float value) {
  uint32_t bits;
  static_assert(sizeof(bits) == sizeof(value));
  std::copy_n(reinterpret_cast<const unsigned char*>(&value), sizeof(bits), reinterpret_cast<unsigned char*>(&bits));
  return bits;
}

absl::Status Bad(const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "GGUF_INVALID", absl::StrCat("GGUF to write: ", rule));
}

absl::Status CheckNames(const GgufKeys& keys, const std::vector<GgufTensorEntry>& tensors) {
  std::set<std::string> seen;
  for (const std::string& key : keys.names()) {
    if (key.empty() || key.size() > kMaxKeyBytes) return Bad("keys must have 1 to 65535 bytes");
    if (!seen.insert(key).second) return Bad(absl::StrCat("key '", key.substr(0, 120), "' is there twice"));
  }
  seen.clear();
  for (const GgufTensorEntry& tensor : tensors) {
    const std::string what = absl::StrCat("tensor '", tensor.name.substr(0, 120), "'");
    if (tensor.name.empty() || tensor.name.size() > kMaxTensorNameBytes) {
      return Bad(absl::StrCat(what, ": names must have 1 to ", kMaxTensorNameBytes, " bytes"));
    }
    if (!seen.insert(tensor.name).second) return Bad(absl::StrCat(what, " is there twice"));
    if (tensor.shape.empty() || tensor.shape.size() > 4) return Bad(absl::StrCat(what, " must have 1 to 4 dimensions"));
    for (const int64_t size : tensor.shape) {
      if (size < 1) return Bad(absl::StrCat(what, ": sizes must be positive, got ", size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void GgufKeys::Begin(const std::string& key, uint32_t type) {
  names_.push_back(key);
  PutText(key, bytes_);
  Put(type, 4, bytes_);
}

void GgufKeys::AddU32(const std::string& key, uint32_t value) {
  Begin(key, kU32);
  Put(value, 4, bytes_);
}
void GgufKeys::AddI32(const std::string& key, int32_t value) {
  Begin(key, kI32);
  Put(static_cast<uint32_t>(value), 4, bytes_);
}
void GgufKeys::AddF32(const std::string& key, float value) {
  Begin(key, kF32);
  Put(BitsOf(value), 4, bytes_);
}
void GgufKeys::AddBool(const std::string& key, bool value) {
  Begin(key, kBool);
  Put(value ? 1 : 0, 1, bytes_);
}
void GgufKeys::AddString(const std::string& key, std::string_view value) {
  Begin(key, kString);
  PutText(value, bytes_);
}
void GgufKeys::AddStrings(const std::string& key, const std::vector<std::string>& values) {
  Begin(key, kArray);
  Put(kString, 4, bytes_);
  Put(values.size(), 8, bytes_);
  for (const std::string& value : values) PutText(value, bytes_);
}
void GgufKeys::AddI32s(const std::string& key, const std::vector<int32_t>& values) {
  Begin(key, kArray);
  Put(kI32, 4, bytes_);
  Put(values.size(), 8, bytes_);
  for (const int32_t value : values) Put(static_cast<uint32_t>(value), 4, bytes_);
}
void GgufKeys::AddF32s(const std::string& key, const std::vector<float>& values) {
  Begin(key, kArray);
  Put(kF32, 4, bytes_);
  Put(values.size(), 8, bytes_);
  for (const float value : values) Put(BitsOf(value), 4, bytes_);
}

void GgufKeys::Append(const GgufKeys& others) {
  names_.insert(names_.end(), others.names_.begin(), others.names_.end());
  bytes_ += others.bytes_;
}

bool GgufKeys::Has(const std::string& key) const {
  return std::find(names_.begin(), names_.end(), key) != names_.end();
}

absl::StatusOr<std::string> GgufBeginning(const GgufKeys& keys, const std::vector<GgufTensorEntry>& tensors) {
  SAGE_RETURN_IF_ERROR(CheckNames(keys, tensors));
  std::string out = "GGUF";
  Put(3, 4, out);
  Put(tensors.size(), 8, out);
  Put(keys.names().size(), 8, out);
  out += keys.bytes();
  uint64_t offset = 0;
  for (const GgufTensorEntry& tensor : tensors) {
    PutText(tensor.name, out);
    Put(tensor.shape.size(), 4, out);
    for (auto it = tensor.shape.rbegin(); it != tensor.shape.rend(); ++it) Put(static_cast<uint64_t>(*it), 8, out);
    Put(static_cast<uint32_t>(tensor.type), 4, out);
    Put(offset, 8, out);
    offset += tensor.bytes + GgufPadding(tensor.bytes);
  }
  out.append(GgufPadding(out.size()), '\0');
  return out;
}

}  // namespace sage
