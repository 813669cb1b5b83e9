// Labels an image by a package of AOTInductor, without Python:
//
//   labels labels.pt2 street.ppm
//
// export.py writes both files.

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

// A binary PPM (P6, 8 bits) without comments: uint8 [height, width, 3].
at::Tensor read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  file >> magic >> width >> height >> largest;
  file.get();  // the one byte that ends the header
  if (!file || magic != "P6" || largest != 255) {
    throw std::runtime_error(path + ": expected a binary PPM of 8 bits");
  }
  const at::Tensor image = at::empty({height, width, 3}, at::kByte);
  if (!file.read(reinterpret_cast<char*>(image.data_ptr<uint8_t>()), image.numel())) {
    throw std::runtime_error(path + ": the image is cut off");
  }
  return image;
}

int main(int count, char** arguments) try {
  if (count != 3) {
    std::cerr << "usage: labels PACKAGE.pt2 IMAGE.ppm\n";
    return 2;
  }
  const c10::InferenceMode no_gradients;
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const at::Tensor labels = model.run({read_image(arguments[2])})[0].contiguous();
  const uint8_t* label = labels.data_ptr<uint8_t>();
  // Every second column of every fourth row.
  for (int64_t y = 0; y < labels.size(0); y += 4) {
    for (int64_t x = 0; x < labels.size(1); x += 2) {
      std::cout << static_cast<int>(label[y * labels.size(1) + x]);
    }
    std::cout << '\n';
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
