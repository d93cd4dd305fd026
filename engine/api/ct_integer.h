// The integer schemes of a compressed-tensors folder: pack-quantized, int-quantized and naive-quantized, 2 to 8 bits.
#pragma once

#include <string>
#include <vector>

#include "engine/api/hf_folder.h"
#include "engine/api/module_pattern.h"

namespace sage {

// Modules by exact name or "re:" pattern (matched at the beginning), as `ignore` lists them.
class CtModuleNames {
 public:
  static absl::StatusOr<CtModuleNames> Read(const std::string& where, const Json& list);
  absl::StatusOr<bool> Holds(const std::string& module) const;

 private:
  std::vector<std::string> names_;
  std::vector<ModulePattern> patterns_;
};

class CtIntegerSchemes {
 public:
  // One entry of config_groups whose weights are of type "int"; `format` is the whole config's. UNIMPLEMENTED names
  // what is not served.
  absl::Status AddGroup(const std::string& path, const std::string& name, const Json& group, const std::string& format);
  // True when the module's tensors are integers: an I32 weight_packed or an I8 weight.
  static bool Holds(const HfFolder& folder, const std::string& module);
  // CHECKPOINT_INVALID names file, tensor and rule where tensors and config disagree.
  absl::StatusOr<StoredLinear> Get(const HfFolder& folder, const std::string& module) const;
  // Widths that have no stored form here become bytes: said for the report.
  std::vector<std::string> notes() const;

 private:
  struct Group {
    std::string name;
    int bits = 0;
    bool packed = true;               // else a byte a code
    bool activations = false;         // 8-bit
    bool static_activations = false;  // by a stored scale
    bool activation_symmetric = true;
    std::string strategy;    // "" = not said
    int64_t group_size = 0;  // 0 = not said
    bool symmetric = true;
    bool orders_groups = false;  // actorder says that modules may have a weight_g_idx
    std::vector<std::string> names;
    std::vector<ModulePattern> patterns;
    bool all = false;  // targets the class Linear
  };
  struct Codes {
    std::vector<uint8_t> codes;  // [N, K] unsigned: code + 2^(b-1)
    std::vector<uint8_t> zeros;  // [N, G] likewise, empty when symmetric
  };

  absl::StatusOr<const Group*> GroupOf(const HfFolder& folder, const std::string& module) const;
  absl::StatusOr<StoredLinear> Begin(const HfFolder& folder, const std::string& module, const Group& group) const;
  absl::StatusOr<Codes> Unpack(const HfFolder& folder, const std::string& module, const Group& group,
                               const StoredLinear& out) const;
  absl::Status AddActivations(const HfFolder& folder, const std::string& module, const Group& group,
                              StoredLinear* out) const;
  absl::Status AddWords(const Codes& codes, int bits, int width, StoredLinear* out) const;
  absl::Status AddBytes(const Codes& codes, int bits, StoredLinear* out) const;

  std::vector<Group> groups_;
};

}  // namespace sage
