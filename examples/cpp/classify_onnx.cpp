// Classify an image with a bundle of skdeploy. ONNX Runtime runs the last graph; the manifest says how to prepare the image.
//   g++ -std=c++17 -O2 classify_onnx.cpp -o classify_onnx -I/usr/include/onnxruntime -lonnxruntime
//   ./classify_onnx build/mynet-int8 cat.ppm
#include "preprocess.hpp"
#include <cstdlib>
#include <numeric>
#include <onnxruntime_cxx_api.h>

static void classify(const std::string &bundle, const std::string &file) {
  const json manifest = read_manifest(bundle), &model = manifest.at("model");
  json graph;
  for (const json &artifact : manifest.at("artifacts"))
    if (artifact.at("format") == "onnx") graph = artifact;
  if (graph.is_null()) throw std::runtime_error(bundle + " holds no ONNX file");
  const json input = graph.at("inputs").at(0);
  std::vector<int64_t> shape;
  for (const json &size : input.at("shape")) shape.push_back(size.is_number() ? size.get<int64_t>() : 1);
  const size_t count = std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<>());

  const Image crop = prepared(read_image(file, model.at("input").at("channels")), model);
  std::vector<uint8_t> pixels = crop.pixels;                      // of --embed-preprocess: (N, H, W, C)
  std::vector<float> planes = normalised(crop, model.at("preprocess"));  // all others: (N, C, H, W)
  if (count != shape.at(0) * pixels.size())
    throw std::runtime_error("the image size in the manifest is not that of the graph");
  pixels.resize(count), planes.resize(count);                     // a fixed batch has room for more images
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value tensor =
      input.at("dtype") == "uint8"
          ? Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), count, shape.data(), shape.size())
          : Ort::Value::CreateTensor<float>(memory, planes.data(), count, shape.data(), shape.size());

  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // else Microsoft's builds send usage figures; what you have set holds
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR);
  Ort::SessionOptions options;
  options.AddConfigEntry("session.disable_quant_qdq", "1");  // else INT8 beside FP16 is computed wrong (ONNX Runtime 1.32)
  Ort::Session session(environment, (bundle + "/" + graph.at("path").get<std::string>()).c_str(), options);
  const std::string name = input.at("name"), output = graph.at("outputs").at(0).at("name");
  const char *names[] = {name.c_str()}, *outputs[] = {output.c_str()};
  const auto found = session.Run(Ort::RunOptions{}, names, &tensor, 1, outputs, 1);
  const float *logits = found.at(0).GetTensorData<float>();
  print_top5({logits, logits + found.at(0).GetTensorTypeAndShapeInfo().GetElementCount() / shape.at(0)}, model);
}

int main(int argc, char **argv) { return run(argc, argv, classify); }
