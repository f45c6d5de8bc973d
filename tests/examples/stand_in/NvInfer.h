// The part of NvInfer.h that examples/cpp calls, with the signatures of TensorRT 10.0 to 11.1. It loads no engine and says so.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>

struct CUstream_st;
using cudaStream_t = CUstream_st *;

namespace nvinfer1 {
using AsciiChar = char;

struct Dims64 {
  int32_t nbDims;
  int64_t d[8];
};
using Dims = Dims64;

enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, AsciiChar const *msg) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  bool setInputShape(char const *, Dims const &) noexcept { return false; }
  bool setTensorAddress(char const *, void *) noexcept { return false; }
  bool enqueueV3(cudaStream_t) noexcept { return false; }
};

class ICudaEngine {
 public:
  IExecutionContext *createExecutionContext() noexcept { return nullptr; }
  Dims getProfileShape(char const *, int32_t, OptProfileSelector) const noexcept { return {}; }
};

class IRuntime {
 public:
  ICudaEngine *deserializeCudaEngine(void const *, std::size_t size) noexcept {
    std::printf("loading %zu bytes\n", size);
    return nullptr;
  }
};

inline IRuntime *createInferRuntime(ILogger &) noexcept { return new IRuntime; }
}  // namespace nvinfer1
