// What Python sets and reads of an emulated library.

#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <string>
#include <utility>

#include "control.h"

namespace tdnet_emulator {

// What is not given gets its default.
inline void set(uint64_t seed, const std::string& copies, uint32_t most_shared,
                uint32_t multiprocessors, const std::pair<std::string, int>& dropped) {
  static const std::map<std::string, CopyMode> modes{
      {"lazy", kCopiesLazy}, {"eager", kCopiesEager}, {"random", kCopiesRandom}};
  settings() = {seed,          modes.at(copies), most_shared, multiprocessors,
                dropped.first, dropped.second};
}

inline void define_control(pybind11::module_& m) {
  using namespace pybind11::literals;
  const Control control;
  m.def("set", set, "seed"_a = control.seed, "copies"_a = "lazy",
        "most_shared"_a = control.most_shared, "multiprocessors"_a = control.multiprocessors,
        "dropped"_a = std::pair(control.dropped_file, control.dropped_line));
  // `with counting() as counts:` fills them in when the block ends.
  pybind11::class_<Statistics>(m, "counting", pybind11::module_local())
      .def(pybind11::init<>())
      .def("__enter__",
           [](pybind11::object self) {
             counts() = {};
             return self;
           })
      .def("__exit__", [](Statistics& self, const pybind11::args&) { self = counts(); })
      .def_readonly("launches", &Statistics::launches)
      .def_readonly("blocks", &Statistics::blocks)
      .def_readonly("barriers", &Statistics::barriers)
      .def_readonly("collectives", &Statistics::collectives)
      .def_readonly("matrix_products", &Statistics::matrix_products)
      .def_readonly("matrix_loads", &Statistics::matrix_loads)
      .def_readonly("bank_conflicts", &Statistics::bank_conflicts)
      .def_readonly("copies", &Statistics::copies);
}

}  // namespace tdnet_emulator
