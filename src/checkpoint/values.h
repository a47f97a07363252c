// Numbers between file dtypes and tensors. float16 only occurs in files.
#pragma once
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "tensor/tensor.h"

namespace furlong {

// IEEE binary16. To float16 rounds to nearest even; too large becomes infinity.
float float_of_half(uint16_t bits);
uint16_t half_of_float(float x);

// Whether values of this file dtype can be read as numbers here: F32, BF16 or F16.
bool is_readable_dtype(std::string_view dtype);

// "F32" or "BF16", the file dtype of a tensor's values.
const char* file_dtype_of(DType dtype);

// Converts n values at `from` (of a readable file dtype, any alignment) to `to` (f32 or bf16; bf16 rounds to nearest
// even). Returns whether all are finite.
bool read_values(std::string_view file_dtype, const uint8_t* from, int64_t n, DType dtype, void* to);

// Hands the n values at `from` (f32 or bf16) to the sink as the readable file dtype, in pieces of bounded size.
void emit_values(DType dtype, const void* from, int64_t n, std::string_view file_dtype, const ByteSink& sink);

// Converts n values at `from` (any alignment) from one readable file dtype to another (BF16 and F16 round to nearest
// even; equal dtypes keep their bits). Returns whether all of `from` are finite.
bool transfer_values(std::string_view from_dtype, const uint8_t* from, int64_t n, std::string_view to_dtype, void* to);

// All values of a file's tensor as floats. Throws Error(Exit::input) when its dtype is not readable.
std::vector<float> floats_of(const TensorEntry& entry);

}  // namespace furlong
