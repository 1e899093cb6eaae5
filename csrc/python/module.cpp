// fastvision._C: the functions of library.h as a Python module. It is tied to one version of
// Python, so wheels leave it out, and the package itself does without.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "python/library.h"

namespace py = pybind11;

namespace {

std::vector<std::string> split(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) {
    words.push_back(word);
  }
  return words;
}

std::vector<std::string> cpu_levels() { return split(fastvision_cpu_levels()); }

void set_cpu_level(const std::string& level) {
  if (const char* reason = fastvision_set_cpu_level(level.c_str())) {
    throw py::value_error("CPU level '" + level + "': " + reason);
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and CPU level of fastvision's compiled library.";
  m.def("compiler", &fastvision_compiler);
  m.def("cuda_version", &fastvision_cuda_version);
  m.def("cuda_architectures", [] { return split(fastvision_cuda_architectures()); });
  m.def("cpu_levels", &cpu_levels);
  m.def("cpu_level", [] { return cpu_levels()[fastvision_cpu_level()]; });
  m.def("cpu_level_supported", [] { return cpu_levels()[fastvision_cpu_level_supported()]; });
  m.def("set_cpu_level", &set_cpu_level, py::arg("level"));
}
