// Classify an image with the TensorRT engine in a bundle of skdeploy: on the device where `skdeploy build` made it.
//   g++ -std=c++17 -I/usr/local/cuda/include classify_tensorrt.cpp -L/usr/local/cuda/lib64 -lnvinfer -lcudart -lcrypto
//   ./a.out build/mynet-int8 cat.ppm
#include "preprocess.hpp"
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <memory>
#include <openssl/evp.h>

struct Logger : nvinfer1::ILogger {
  void log(Severity severity, const char *text) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << text << "\n";
  }
};

static void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

struct Device {  // memory of the GPU
  void *at = nullptr;
  explicit Device(size_t bytes) { check(cudaMalloc(&at, bytes)); }
  Device(const Device &) = delete;
  ~Device() { cudaFree(at); }
};

// An engine is code that will run here: load only the file that the manifest describes.
static std::string read_engine(const std::string &path, const std::string &sha256) {
  std::ifstream file(path, std::ios::binary);
  const std::string plan{std::istreambuf_iterator<char>(file), {}};
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_Digest(plan.data(), plan.size(), digest, &size, EVP_sha256(), nullptr);
  std::string found;
  for (unsigned i = 0; i < 2 * size; i++) found += "0123456789abcdef"[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
  if (found != sha256) throw std::runtime_error(path + " is not the engine of the manifest: its sha256 is " + found);
  return plan;
}

static void classify(const std::string &bundle, const std::string &file) {
  const json manifest = read_manifest(bundle), &model = manifest.at("model");
  json made;
  for (const json &artifact : manifest.at("artifacts"))
    if (artifact.at("format") == "engine" && artifact.at("facts").at("compiler") == "tensorrt") made = artifact;
  if (made.is_null()) throw std::runtime_error(bundle + " holds no TensorRT engine: make one here with `skdeploy build`");
  const std::string input = made.at("inputs").at(0).at("name"), output = made.at("outputs").at(0).at("name");
  const std::string plan = read_engine(bundle + "/" + made.at("path").get<std::string>(), made.at("sha256"));
  const Image crop = prepared(read_image(file, model.at("input").at("channels")), model);
  const std::vector<float> planes = normalised(crop, model.at("preprocess"));
  const bool pixels = made.at("inputs").at(0).at("dtype") == "uint8";  // of --embed-preprocess
  const size_t bytes = pixels ? crop.pixels.size() : planes.size() * sizeof(float);

  Logger logger;
  const std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
  const std::unique_ptr<nvinfer1::ICudaEngine> engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
  if (!engine) throw std::runtime_error("this TensorRT or GPU cannot load the engine: make one here with `skdeploy build`");
  const std::unique_ptr<nvinfer1::IExecutionContext> context{engine->createExecutionContext()};
  auto shape = engine->getProfileShape(input.c_str(), 0, nvinfer1::OptProfileSelector::kMIN);
  const size_t batch = shape.d[0], classes = model.at("network").at("classes");
  Device in(batch * bytes), out(batch * classes * sizeof(float));
  check(cudaMemset(in.at, 0, batch * bytes));
  check(cudaMemcpy(in.at, pixels ? (const void *)crop.pixels.data() : planes.data(), bytes, cudaMemcpyHostToDevice));
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  if (!context || !context->setInputShape(input.c_str(), shape) || !context->setTensorAddress(input.c_str(), in.at) ||
      !context->setTensorAddress(output.c_str(), out.at) || !context->enqueueV3(stream))
    throw std::runtime_error("TensorRT does not run the engine: the messages above say why");
  check(cudaStreamSynchronize(stream));
  std::vector<float> logits(classes);  // of the first image
  check(cudaMemcpy(logits.data(), out.at, classes * sizeof(float), cudaMemcpyDeviceToHost));
  print_top5(logits, model);
}

int main(int argc, char **argv) { return run(argc, argv, classify); }
