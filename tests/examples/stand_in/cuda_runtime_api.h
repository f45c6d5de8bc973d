// The part of CUDA's runtime API that examples/cpp calls, with the signatures of CUDA 12.6 to 13.5. There is no GPU.
#pragma once
#include <cstddef>

struct CUstream_st;
using cudaStream_t = CUstream_st *;
enum cudaError_t { cudaSuccess = 0, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

inline const char *cudaGetErrorString(cudaError_t) { return "no CUDA-capable device is detected"; }
inline cudaError_t cudaMalloc(void **, std::size_t) { return cudaErrorNoDevice; }
inline cudaError_t cudaFree(void *) { return cudaErrorNoDevice; }
inline cudaError_t cudaMemset(void *, int, std::size_t) { return cudaErrorNoDevice; }
inline cudaError_t cudaMemcpy(void *, const void *, std::size_t, cudaMemcpyKind) { return cudaErrorNoDevice; }
inline cudaError_t cudaStreamCreate(cudaStream_t *) { return cudaErrorNoDevice; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaErrorNoDevice; }
