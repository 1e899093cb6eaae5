// fastvision._C: what the library was built with, and the CPU level its kernels run at.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "build_info.h"
#include "common/isa.h"

namespace py = pybind11;

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ';');) {
    parts.push_back(part);
  }
  return parts;
}

const std::vector<std::string>& levels() {
  static const std::vector<std::string> names = split(FASTVISION_ISA_LEVELS);
  return names;
}

void set_cpu_capability(const std::string& name) {
  for (size_t level = 0; level < levels().size(); ++level) {
    if (levels()[level] == name) {
      if (static_cast<int>(level) > fastvision::cpu_level_supported()) {
        throw py::value_error("this CPU does not support the level '" + name + "'");
      }
      fastvision::set_cpu_level(static_cast<int>(level));
      return;
    }
  }
  throw py::value_error("unknown CPU level '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and CPU capability of fastvision's compiled library.";
  m.def("cuda_architectures", [] { return split(FASTVISION_CUDA_ARCHS); });
  m.def("cuda_version", [] { return std::string(FASTVISION_CUDA_VERSION); });
  m.def("compiler", [] { return std::string(FASTVISION_CXX_COMPILER); });
  m.def("cpu_levels", [] { return levels(); }, "Levels compiled in, lowest first.");
  m.def("cpu_capability", [] { return levels()[fastvision::cpu_level()]; }, "The level in use.");
  m.def("cpu_capability_supported", [] { return levels()[fastvision::cpu_level_supported()]; });
  m.def(
      "set_cpu_capability",
      &set_cpu_capability,
      py::arg("level"),
      "Run the CPU kernels at a given level; ValueError where this CPU lacks it."
  );
}
