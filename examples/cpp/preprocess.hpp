// What both examples share: the manifest of a bundle, an image prepared as skdeploy prepares it, and the answer in words.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;

struct Image {
  int width, height, channels;
  std::vector<uint8_t> pixels;  // rows of (channels) bytes
};

inline json read_manifest(const std::string &bundle) {
  std::ifstream file(bundle + "/manifest.json");
  if (!file) throw std::runtime_error(bundle + " is not a bundle: it has no manifest.json");
  json manifest = json::parse(file);
  if (manifest.at("schema") != 2) throw std::runtime_error("the manifest has another schema than 2");
  if (manifest.at("verdict") != "verified") throw std::runtime_error("the export of " + bundle + " was not verified");
  return manifest;
}

inline Image read_image(const std::string &path, int channels) {  // PPM (P6) or PGM (P5), without comments
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int width = 0, height = 0, largest = 0;
  file >> magic >> width >> height >> largest;
  const std::string wanted = channels == 3 ? "P6" : "P5";
  if (!file || magic != wanted || largest != 255 || width < 1 || height < 1 || width > 1 << 14 || height > 1 << 14)
    throw std::runtime_error(path + " is not an 8-bit " + wanted + " image of up to 16384 x 16384 pixels");
  file.get();
  Image image{width, height, channels, std::vector<uint8_t>(size_t(width) * height * channels)};
  if (!file.read(reinterpret_cast<char *>(image.pixels.data()), image.pixels.size()))
    throw std::runtime_error(path + " ends before its last pixel");
  return image;
}

inline double filter(double distance, bool cubic) {  // Pillow's triangle, and its cubic with a = -0.5
  const double d = std::abs(distance);
  if (!cubic) return std::max(0.0, 1 - d);
  return d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

// One axis of Pillow's resize, rounded to 8 bits, and turned: (height, width) becomes (size, height). Two calls do both axes.
inline Image resized_and_turned(const Image &from, int size, bool cubic) {
  Image to{from.height, size, from.channels, std::vector<uint8_t>(size_t(from.height) * size * from.channels)};
  const double scale = double(from.width) / size, wide = std::max(scale, 1.0), support = (cubic ? 2 : 1) * wide;
  for (int x = 0; x < size; x++) {
    const double centre = (x + 0.5) * scale;
    const int first = std::max(0, int(centre - support + 0.5)), last = std::min(from.width, int(centre + support + 0.5));
    std::vector<double> shares;
    for (int i = first; i < last; i++) shares.push_back(filter((i + 0.5 - centre) / wide, cubic));
    const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
    std::vector<int> weights;  // in fixed point, as Pillow's, so that a half is rounded the same way
    for (const double share : shares) weights.push_back(int(std::lround(share / total * (1 << 22))));
    for (int y = 0; y < from.height; y++)
      for (int c = 0; c < from.channels; c++) {
        int sum = 1 << 21;
        for (int i = first; i < last; i++)
          sum += weights[i - first] * from.pixels[(size_t(y) * from.width + i) * from.channels + c];
        to.pixels[(size_t(x) * from.height + y) * from.channels + c] = uint8_t(std::clamp(sum >> 22, 0, 255));
      }
  }
  return to;
}

// The shorter side to `resize`, then the middle: (height, width) of the network's input.
inline Image prepared(const Image &image, const json &model) {
  const json &how = model.at("preprocess"), &input = model.at("input");
  const int resize = how.at("resize"), height = input.at("height"), width = input.at("width");
  const std::string interpolation = how.at("interpolation");
  if (interpolation != "bilinear" && interpolation != "bicubic")
    throw std::runtime_error("this example resizes bilinear and bicubic, the manifest says " + interpolation);
  const int shorter = std::min(image.width, image.height), wide = int64_t(resize) * image.width / shorter;
  const int high = int64_t(resize) * image.height / shorter;
  const bool cubic = interpolation == "bicubic";
  const Image all = resized_and_turned(resized_and_turned(image, wide, cubic), high, cubic);
  const int left = int(std::nearbyint((wide - width) / 2.0)), top = int(std::nearbyint((high - height) / 2.0));
  if (left < 0 || top < 0 || left + width > wide || top + height > high)
    throw std::runtime_error("the manifest's input is larger than its resize");
  Image crop{width, height, image.channels, {}};
  for (int y = top; y < top + height; y++) {
    const auto row = all.pixels.begin() + (size_t(y) * wide + left) * image.channels;
    crop.pixels.insert(crop.pixels.end(), row, row + size_t(width) * image.channels);
  }
  return crop;
}

inline std::vector<float> normalised(const Image &crop, const json &how) {  // planes: (channels, height, width)
  std::vector<float> planes(crop.pixels.size());
  const size_t area = size_t(crop.width) * crop.height;
  for (int c = 0; c < crop.channels; c++) {
    const double mean = how.at("mean").at(c), deviation = how.at("std").at(c);
    const float scale = float(1 / (255 * deviation)), offset = float(-mean / deviation);
    for (size_t i = 0; i < area; i++) planes[c * area + i] = crop.pixels[i * crop.channels + c] * scale + offset;
  }
  return planes;
}

inline void print_top5(const std::vector<float> &logits, const json &model) {  // probability, logit, label
  const size_t classes = model.at("network").at("classes");
  const std::vector<std::string> labels = model.at("labels");
  if (logits.size() != classes || (!labels.empty() && labels.size() != classes))
    throw std::runtime_error("the network gives " + std::to_string(logits.size()) + " logits, the manifest says " +
                             std::to_string(classes) + " classes and has " + std::to_string(labels.size()) + " labels");
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  double total = 0;
  for (const float logit : logits) total += std::exp(double(logit) - logits[order[0]]);
  for (size_t n = 0; n < std::min<size_t>(5, classes); n++) {
    const size_t at = order[n];
    const double share = std::exp(double(logits[at]) - logits[order[0]]) / total;
    const std::string label = labels.empty() ? std::to_string(at) : labels[at];
    std::printf("%6.2f %%  %12.8g  %s\n", 100 * share, logits[at], label.c_str());
  }
}

inline int run(int argc, char **argv, void (*classify)(const std::string &bundle, const std::string &image)) {
  if (argc != 3) return std::cerr << "usage: " << argv[0] << " BUNDLE IMAGE.ppm\n", 2;
  try {
    return classify(argv[1], argv[2]), 0;
  } catch (const json::exception &error) {
    return std::cerr << "error: " << argv[1] << "/manifest.json is damaged: " << error.what() << "\n", 1;
  } catch (const std::exception &error) {
    return std::cerr << "error: " << error.what() << "\n", 1;
  }
}
