// Names of weights in GGUF files and in Hugging Face folders, both ways. Source: llama.cpp constants.py.
#pragma once

#include <string>

namespace sage {

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; "" when the name has no counterpart.
std::string HfNameOfGguf(const std::string& name);
// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight"; "" when the name has no counterpart.
std::string GgufNameOfHf(const std::string& name);

}  // namespace sage
